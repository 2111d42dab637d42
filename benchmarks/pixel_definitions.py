"""Compare a real model's answers on each pixel definition with those on torchvision's own pixels.

The reference pixels are torchvision's `resized_crop` on PIL images, for the same boxes. For each
arm: how often the largest logit is the same class, the mean KL divergence from the answers on the
reference pixels, the accuracy, and the mean difference of the pixels in levels. Intervals are 95 %
from 1,000 bootstrap draws of photos.

    python benchmarks/pixel_definitions.py PHOTOS --classes 1000 \
        --model timm:tf_efficientnet_lite0 --weights lite0.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from measure import environment, record
from PIL import Image
from torchvision.transforms import functional

from kdcache import make_model
from kdcache.data.beton import Beton, open_beton
from kdcache.data.jpeg_library import decode_jpeg
from kdcache.data.pack import pack
from kdcache.data.policy import Policy
from kdcache.data.views import Views, view_parameters
from kdcache.models.weights import load_weights
from kdcache.options import PackOptions
from kdcache.reader.batches import view_pixels

Floats = npt.NDArray[np.float64]

ARMS = {
    "pillow": {"definition": "pillow", "decode": "full"},
    "planes": {"definition": "planes", "decode": "full"},
    "pillow, scaled": {"definition": "pillow", "decode": "scaled"},
    "planes, scaled": {"definition": "planes", "decode": "scaled"},
}


def reference_pixels(beton: Beton, views: Views, view: int) -> npt.NDArray[np.uint8]:
    """Return torchvision's pixels of a view, (N, S, S, 3)."""
    boxes = view_parameters(views.policy, views.seed, view, beton.view_keys, beton.sizes)
    size = [views.image_size, views.image_size]
    pixels = []
    for position, content, _ in beton.stored(range(len(beton))):
        image = decode_jpeg(content, *beton.sizes[position].tolist())
        assert image is not None
        top, left, height, width, flip = boxes[position].tolist()
        cropped = functional.resized_crop(Image.fromarray(image), top, left, height, width, size)
        pixels.append(np.asarray(cropped)[:, ::-1] if flip else np.asarray(cropped))
    return np.stack(pixels)


def log_probabilities(
    model: torch.nn.Module, pixels: npt.NDArray[np.uint8], options: argparse.Namespace
) -> Floats:
    """Return the model's log-probabilities, (N, C)."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (options.mean, options.std))
    answers = []
    for part in torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).split(50):
        with torch.inference_mode():
            answers.append(model((part.float() / 255 - mean) / std).double().log_softmax(dim=1))
    found: Floats = torch.cat(answers).numpy()
    return found


def interval(values: Floats) -> tuple[float, float, float]:
    """Return the mean of (photos, views) values and its 95 % interval over photos."""
    draws = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    means = values.mean(axis=1)[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def compare(beton: Beton, model: torch.nn.Module, options: argparse.Namespace) -> dict[str, object]:
    """Return arm -> figure -> (mean, low, high)."""
    views = Views(Policy.parse("rrc"), 0, options.image_size)
    figures: dict[str, dict[str, list[Floats]]] = {arm: {} for arm in ("torchvision", *ARMS)}
    for view in range(1, options.views + 1):
        theirs = reference_pixels(beton, views, view)
        expected = log_probabilities(model, theirs, options)
        for arm, of_arm in figures.items():
            pixels = theirs
            answers = expected
            if arm in ARMS:
                pixels = view_pixels(
                    beton,
                    views.policy,
                    views.seed,
                    view,
                    beton.sample_ids,
                    image_size=options.image_size,
                    **ARMS[arm],  # type: ignore[arg-type]
                )
                answers = log_probabilities(model, pixels, options)
            is_right = answers.argmax(axis=1) == beton.labels
            same = (pixels == theirs).all(axis=(1, 2, 3))
            for name, values in {
                "accuracy": is_right,
                "agreement": answers.argmax(axis=1) == expected.argmax(axis=1),
                "kl": (np.exp(expected) * (expected - answers)).sum(axis=1),
                "levels": abs(pixels.astype(np.int16) - theirs).mean(axis=(1, 2, 3)),
                "equal_pixels": same,
                "other_answers_on_equal_pixels": same & (answers != expected).any(axis=1),
            }.items():
                of_arm.setdefault(name, []).append(values.astype(np.float64))
    return {
        arm: {name: interval(np.stack(values, axis=1)) for name, values in of_arm.items()}
        for arm, of_arm in figures.items()
    }


def main() -> None:
    """Compare and print; with --record, write the result to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="photos, as for kdcache pack")
    parser.add_argument("--classes", type=int, help="as for kdcache pack")
    parser.add_argument("--model", required=True, help="any model of kdcache")
    parser.add_argument("--weights", type=Path, required=True, help="a safetensors file")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--mean", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--std", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pack(
            PackOptions(
                options.source,
                workspace=Path(folder),
                val_fraction=0,
                write_mode="jpg",
                classes=options.classes,
            )
        )
        beton = open_beton(Path(folder) / "train.beton")
        classes = beton.manifest.classes
        model = make_model(options.model, num_classes=classes, image_size=options.image_size)
        tensors, _ = load_weights(options.weights)
        model.load_state_dict(tensors)
        figures = compare(beton, model.eval(), options)
    print(f"\n{environment()['cpu']}, {len(beton)} photos, {options.views} views each")
    for arm, of_arm in figures.items():
        print(f"\n{arm}")
        for name, (mean, low, high) in of_arm.items():  # type: ignore[attr-defined]
            print(f"    {name:32}{mean:9.5f}  ({low:.5f} to {high:.5f})")
    if options.record:
        recorded = vars(options) | {"source": Path(options.source).name}
        recorded["weights"] = options.weights.name
        path = record("pixel-definitions", {"options": recorded, "figures": figures})
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()

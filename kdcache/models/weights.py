"""Read and write weights as safetensors, so that a file that a user downloads is never executed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcache.errors import MissingFileError, WeightsError
from kdcache.files import replace_atomically
from kdcache.models.description import parse_metadata
from kdcache.models.family import Shape
from kdcache.models.weights_files import METADATA_KEY, weights_problem
from kdcache.seals import BLANK, JSON_KEY, seal_file

_COUNTER = "num_batches_tracked"
_CONV_DIMS = 4
"""Dimensions of the weights of a 2-D convolution: (out, in, height, width)."""

_TRAINING_OPTIONS = (
    *("batch_size", "seed", "image_size", "policy", "view_seed", "optimizer", "lr"),
    *("pixel_definition", "decode"),
    *("weight_decay", "schedule", "warmup", "accumulate", "clip_norm", "ema", "eval_every"),
    "precision",
)
"""Options of `kdcache train-teacher` that a teacher's description records."""

MAX_LISTED = 3
"""Number of tensors of each kind that a message lists; it counts the others."""


def save_weights(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON description of them, atomically, with a seal of the file."""
    with replace_atomically(path) as partial:
        partial.touch()
        permissions = partial.stat().st_mode
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            # One entry, because safetensors writes several in a random order.
            metadata={METADATA_KEY: json.dumps({**about, JSON_KEY: BLANK})},
        )
        seal_file(partial)
        # safetensors lets only the owner read, whatever the umask says.
        partial.chmod(permissions)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their description; it is empty if another program wrote the file.

    Raises:
        MissingFileError: if there is no such file.
        WeightsError: if it is not safetensors, is truncated, or differs from its seal.
    """
    with _opened(path) as file:
        about = parse_metadata(file.metadata(), path)
        if problem := weights_problem(path):
            raise WeightsError(f"{path} {problem}. {_make_again(path, about)}")
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def read_weights_description(path: Path) -> dict[str, Any]:
    """Read only the description, which is not compared with the seal; see `load_weights`."""
    with _opened(path) as file:
        return parse_metadata(file.metadata(), path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise MissingFileError(f"{path} does not exist, expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not readable as safetensors ({error}): it has another format, or is "
            "truncated. Convert other formats with safetensors.torch.save_file(state_dict, path)"
        ) from error


def _make_again(path: Path, about: dict[str, Any]) -> str:
    """Return the remedy for a file of kdcache that cannot be used."""
    if path.parent.name != "teachers":
        return "Copy it from a backup, or train again: kdcache train"
    words = [f"kdcache train-teacher --model {shlex.quote(str(about.get('arch', 'MODEL')))}"]
    length = "epochs" if about.get("steps") is None else "steps"
    words += [
        f"--{name.replace('_', '-')} {shlex.quote(str(about[name]))}"
        for name in (length, *_TRAINING_OPTIONS)
        if about.get(name) is not None
    ]
    words.append(f"--name {shlex.quote(path.stem)} --overwrite")
    return f"Run: {' '.join(words)} --workspace {shlex.quote(str(path.parent.parent))}"


def fill_model(model: nn.Module, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Load weights that must fit the model exactly. If they do not, the model is unchanged.

    The counters of batch norms, `num_batches_tracked`, may be missing, as in files from before
    torch 0.4.1: evaluation does not use them.

    Raises:
        WeightsError: if names or shapes differ; lists the first of each, and the probable cause.
    """
    own = model.state_dict()
    counters = {
        name: own[name]
        for name in own
        if name.endswith(_COUNTER) and f"{name.removesuffix(_COUNTER)}running_mean" in tensors
    }
    tensors = counters | tensors
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise WeightsError(f"{path} does not fit the model: {_describe_mismatch(found, expected)}")
    model.load_state_dict(tensors)


def _describe_mismatch(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """Describe the differences and the remedy."""
    if prefix := _common_prefix(found, expected):
        return (
            f"its names begin with {prefix!r}, expected none: a wrapper such as DataParallel or "
            f"torch.compile was saved. Save it again with "
            f"{{name.removeprefix({prefix!r}): tensor for name, tensor in state_dict.items()}}"
        )
    missing = [f"{name} {expected[name]}" for name in expected if name not in found]
    unexpected = [f"{name} {found[name]}" for name in found if name not in expected]
    reshaped = [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    parts = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    cause = None if missing or unexpected else _cause_of_shapes(found, expected)
    remedy = cause or (
        "Name the model that it was trained as with --arch; it must have the packed data's classes"
    )
    return f"{len(found)} tensors, expected {len(expected)}; {'; '.join(parts)}. {remedy}"


def _cause_of_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    """Return the cause and the remedy if all names fit and one cause explains all shapes."""
    differing = [name for name in expected if found[name] != expected[name]]
    pairs = [(found[name], expected[name]) for name in differing]
    if all("pos_embed" in name for name in differing):
        return (
            "The number of positions depends on the image size: state the size that the file was "
            "trained at with --teacher-size"
        )
    if all(_differs_in_axis(theirs, ours, axis=0) for theirs, ours in pairs):
        sizes = {(theirs[0], ours[0]) for theirs, ours in pairs}
        if len(sizes) == 1:
            (theirs_0, ours_0), *_ = sizes
            return (
                f"The file has {theirs_0:,} classes, expected {ours_0:,} as in the packed data: "
                "use a teacher that was trained on these classes, or let module:callable return "
                "a model that selects them"
            )
    if len(pairs) == 1 and _differs_in_axis(*pairs[0], axis=1) and len(pairs[0][0]) == _CONV_DIMS:
        return (
            f"The file takes images of {pairs[0][0][1]} channels, expected {pairs[0][1][1]} (red, "
            "green, blue): let module:callable return a model that converts them first"
        )
    return None


def _differs_in_axis(theirs: Shape, ours: Shape, *, axis: int) -> bool:
    """Return True if two shapes have the same length and differ in one axis alone."""
    return len(theirs) == len(ours) and [
        index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]
    ] == [axis]


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:MAX_LISTED], *(["..."] if len(names) > MAX_LISTED else [])])


def _common_prefix(found: Iterable[str], expected: Container[str]) -> str:
    """Return the prefix that all names share and that hides expected names, or ""."""
    names = list(found)
    ends = [index + 1 for index, letter in enumerate(names[0]) if letter == "."] if names else []
    for end in ends:
        prefix = names[0][:end]
        if all(name.startswith(prefix) for name in names):
            hidden = sum(name.removeprefix(prefix) in expected for name in names)
            if hidden > len(names) / 2:
                return prefix
    return ""

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

from kdcache.errors import WeightsError
from kdcache.files import replace_atomically
from kdcache.models.weights_files import METADATA_KEY, weights_problem
from kdcache.seals import BLANK, JSON_KEY, seal_file

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
        FileNotFoundError: if there is no such file.
        WeightsError: if it is not safetensors, is truncated, or differs from its seal.
    """
    with _opened(path) as file:
        if problem := weights_problem(path):
            raise WeightsError(f"{path} {problem}. {_make_again(path, _description(file))}")
        return {name: file.get_tensor(name) for name in file.keys()}, _description(file)  # noqa: SIM118


def read_weights_description(path: Path) -> dict[str, Any]:
    """Read only the description, which is not compared with the seal; see `load_weights`."""
    with _opened(path) as file:
        return _description(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not readable as safetensors ({error}): it has another format, or is "
            "truncated. Convert other formats with safetensors.torch.save_file(state_dict, path)"
        ) from error


def _description(file: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    about.pop(JSON_KEY, None)
    return about


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

    Raises:
        WeightsError: if names or shapes differ; lists the first of each.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise WeightsError(f"{path} does not fit the model: {_describe_mismatch(found, expected)}")
    model.load_state_dict(tensors)


def _describe_mismatch(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> str:
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
    return (
        f"{len(found)} tensors, expected {len(expected)}; {'; '.join(parts)}. Name the model "
        "that it was trained as with --arch; it must have the packed data's classes"
    )


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

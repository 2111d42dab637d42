"""Weights on disk, always safetensors: a file that a user downloads is never executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcache.errors import TeacherError
from kdcache.files import replace_atomically

_METADATA_KEY = "kdcache"


def save_weights(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON description of them, atomically."""
    with replace_atomically(path) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            metadata={_METADATA_KEY: json.dumps(about)},
        )


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their description, empty where another program wrote the file.

    Raises:
        FileNotFoundError: if there is no such file.
        TeacherError: if it is not whole safetensors.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TeacherError(
            f"{path} is not readable as safetensors ({error}). Convert other formats with "
            "safetensors.torch.save_file(state_dict, path)"
        ) from error
    return tensors, json.loads(metadata.get(_METADATA_KEY, "{}"))


def fill_model(model: nn.Module, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        TeacherError: if names or shapes differ; lists the first of them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differ = [
        f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'no such tensor')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if differ:
        shown = "; ".join(differ[:3])
        raise TeacherError(
            f"{path} does not fit the model: {shown} ({len(differ)} differences in all). "
            "Name the model it was trained as"
        )
    model.load_state_dict(tensors)

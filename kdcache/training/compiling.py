"""`--compile`: a model's forward pass through torch.compile, and whether that can be done here."""

from __future__ import annotations

import os
import shutil

import torch

from kdcache.errors import ConfigError


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile can make code for a device, before a run starts.

    Raises:
        ConfigError: if its compiler is not there; names what to install.
    """
    # What it makes for CUDA is compiled by Triton, but the launcher in C.
    variable, usual = ("CXX", "g++") if device.type == "cpu" else ("CC", "gcc")
    name = os.environ.get(variable, usual)
    if shutil.which(name) is None:
        raise ConfigError(
            f"--compile is given, but the compiler {name} is not found, which torch.compile needs. "
            f"Install it (apt-get install g++), name another with {variable}, or leave --compile "
            "out"
        )

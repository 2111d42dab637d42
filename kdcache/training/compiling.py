"""`--compile`: check that torch.compile has a compiler on this machine."""

from __future__ import annotations

import os
import shutil

import torch

from kdcache.errors import ConfigError


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile can make code for a device, before a run starts.

    Raises:
        ConfigError: if the compiler is missing; names what to install.
    """
    # For CUDA, Triton compiles the kernels, but a C compiler compiles their launcher.
    variable, usual = ("CXX", "g++") if device.type == "cpu" else ("CC", "gcc")
    name = os.environ.get(variable, usual)
    if shutil.which(name) is None:
        raise ConfigError(
            f"--compile is given, but torch.compile needs the compiler {name}, which is not found. "
            f"Install it (apt-get install g++), name another with {variable}, or leave --compile "
            "out",
            parameter="compile",
            value=True,
        )

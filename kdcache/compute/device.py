"""Choose the device that a process runs on."""

from __future__ import annotations

import os

import torch

from kdcache.errors import ConfigError
from kdcache.options import Device


def resolve_device(device: Device) -> torch.device:
    """Return the device of this process.

    Raises:
        ConfigError: if `device` is cuda and torch finds no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            parameter="device",
            value="cuda",
            problem="torch finds no CUDA device",
            remedy="Use --device cpu, or install a driver and a CUDA build of torch",
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # torchrun gives each process of a machine its device.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

"""The device is the GPU if there is one, else the CPU."""

from __future__ import annotations

import pytest
import torch

from kdcache.compute.device import resolve_device
from kdcache.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_runs_on_its_cpu(device):
    assert resolve_device(device) == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match="device=cuda"):
        resolve_device("cuda")

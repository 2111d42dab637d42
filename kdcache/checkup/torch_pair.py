"""Check that torch works, and that torchvision and the CUDA driver match it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from kdcache.checkup.finding import Finding, error, note, ok, reason

_DEVICES = Path("/dev")
_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: the driver works, but finds no GPU."""

_INSTALL_PAIR = (
    "install matching versions: pip install --upgrade --force-reinstall torch torchvision"
)


def check_torch(_workspace: Path) -> Iterator[Finding]:
    """Compute a gradient on the CPU, run an operation of torchvision, and compute on each GPU."""
    weight = torch.ones(4, 4, requires_grad=True)
    (torch.full((4, 4), 2.0) @ weight).sum().backward()
    if weight.grad is None or weight.grad.unique().tolist() != [8.0]:
        yield error("torch", f"{torch.__version__} computes a wrong gradient", _INSTALL_PAIR)
    else:
        yield ok("torch", f"{torch.__version__} with {torch.get_num_threads()} threads")
    yield check_torchvision()
    yield check_gpu()


def check_torchvision() -> Finding:
    """Run a compiled operation of torchvision, which is built for one version of torch."""
    try:
        import torchvision

        found = f"torchvision {torchvision.__version__} with torch {torch.__version__}"
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()
    except Exception as failure:  # noqa: BLE001  (a broken library raises almost anything)
        found = f"torchvision does not work with torch {torch.__version__}: {reason(failure)}"
        return error("torchvision", found, _INSTALL_PAIR)
    if kept != [1]:
        return error("torchvision", f"{found}: nms kept {kept}, expected [1]", _INSTALL_PAIR)
    needed = [Requirement(line) for line in requires("torchvision") or []]
    for requirement in needed:
        # The local part of a version does not count: torch 2.11.0+cu130 satisfies torch==2.11.0.
        if requirement.name == "torch" and not requirement.specifier.contains(
            Version(version("torch")).public, prereleases=True
        ):
            return error("torchvision", f"{found}, but it needs {requirement}", _INSTALL_PAIR)
    return ok("torchvision", found)


def check_gpu(devices: Path = _DEVICES) -> Finding:
    """Compute on every GPU; without one, report why.

    Args:
        devices: folder that holds the driver's device files.
    """
    if not torch.cuda.is_available():
        return _without_cuda(devices)
    names = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            ones = torch.ones(64, 64, device=torch.device("cuda", index))
            computed = float((ones @ ones).sum())
        except RuntimeError as failure:  # for example, this torch has no kernels for the GPU
            found = f"{name} cannot compute with torch {torch.__version__}: {reason(failure)}"
            remedy = "install a torch for this GPU: https://pytorch.org/get-started/locally"
            return error("GPU", found, remedy)
        if computed != 64**3:
            remedy = "check the GPU's state: nvidia-smi -q"
            return error("GPU", f"{name} computed {computed}, expected {64**3}", remedy)
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{name} ({free / 1e9:,.1f} of {total / 1e9:,.1f} GB free)")
    return ok("GPU", f"{', '.join(names)}, CUDA {torch.version.cuda}")


def _without_cuda(devices: Path) -> Finding:
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"torch {torch.__version__} is built without CUDA"
        remedy = "install one with CUDA: https://pytorch.org/get-started/locally"
    else:
        try:
            torch.cuda.init()
            why = "torch.cuda.is_available() is false"
        except Exception as failure:  # noqa: BLE001  (the message is the result)
            why = reason(failure)
        remedy = (
            "update the NVIDIA driver, or install a torch for an older CUDA: "
            "https://pytorch.org/get-started/locally"
        )
    if _driver_sees_gpu() or (any(devices.glob("nvidia[0-9]*")) and _driver_sees_gpu() is None):
        return error("GPU", f"this machine has one, but torch cannot use it: {why}", remedy)
    return note("GPU", "none: models run on the CPU", "use a GPU for large data sets")


def _driver_sees_gpu() -> bool | None:
    """Return whether the CUDA driver finds a GPU; None if its library is not installed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return int(driver.cuInit(0)) != _NO_DEVICE

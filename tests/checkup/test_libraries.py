"""torch, torchvision, CUDA, numba and FFCV, each really broken in turn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import kdcache
from kdcache.checkup.torch_pair import check_gpu
from tests.checkup.processes import check, library

# A driver of CUDA 11.4 that says there is a GPU, or that there is none.
DRIVER = r"""
#include <stdlib.h>
int cuInit(unsigned flags) { return getenv("NO_GPU") ? 100 : 0; }
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
"""

# libjpeg-turbo's decoder, found before the real one.
DECODER = r"""
#include <stdlib.h>
void *tjInitDecompress(void) { if (getenv("CRASH")) abort(); return (void *)1; }
int tjDecompress2(void *a, const void *b, unsigned long c, void *d, int e, int f, int g, int h,
                  int i) { return getenv("SAYS_SO") ? -1 : 0; }
int tjDestroy(void *a) { return 0; }
int tjDecompressToYUVPlanes(void) { return 0; }
int tjInitTransform(void) { return 0; }
int tjTransform(void) { return 0; }
void tjFree(void) {}
"""
DECODER_VERSIONS = """
TURBOJPEG_1.0 { global: tjInitDecompress; tjDestroy; };
TURBOJPEG_1.2 { global: tjDecompress2; tjInitTransform; tjTransform; tjFree; };
TURBOJPEG_1.4 { global: tjDecompressToYUVPlanes; };
"""

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def package(folder: Path, name: str, code: str, metadata: str = "") -> dict[str, str]:
    """Write a package that stands before the installed one; return the environment with it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    if metadata:
        (folder / f"{name}-0.1.dist-info").mkdir()
        (folder / f"{name}-0.1.dist-info/METADATA").write_text(metadata)
    return {"PYTHONPATH": str(folder)}


def test_torch_that_cannot_be_loaded_is_an_error(tmp_path):
    broken = package(tmp_path, "torch", "raise ImportError('libcudart.so.13: cannot open')")
    found = check("torch", tmp_path, environment=broken)
    assert found.keys() == {"torch"}
    assert found["torch"].level == "error"
    assert found["torch"].found.endswith("ImportError: libcudart.so.13: cannot open")


def test_matching_torch_and_torchvision_are_ok(tmp_path):
    found = check("torch", tmp_path)
    assert (found["torch"].level, found["torchvision"].level) == ("ok", "ok")
    assert found["GPU"].level == ("ok" if torch.cuda.is_available() else "note")


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "__version__ = '0.1'",  # without what it is to hold
    ],
)
def test_a_broken_torchvision_is_an_error(tmp_path, code):
    broken = package(tmp_path, "torchvision", code)
    found = check("torch", tmp_path, environment=broken)
    assert found["torch"].level == "ok"
    assert found["torchvision"].level == "error"
    assert f"does not work with torch {torch.__version__}" in found["torchvision"].found
    assert "torch torchvision" in found["torchvision"].remedy


@pytest.mark.parametrize(
    ("needs", "level"),
    [("torch (==1.0.0)", "error"), ("torch (>=2)", "ok"), ("torch>=99", "error"), ("numpy", "ok")],
)
def test_torchvision_for_another_torch_is_an_error(tmp_path, needs, level):
    folder = tmp_path / "torchvision-0.1.dist-info"
    folder.mkdir()
    about = f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\nRequires-Dist: {needs}\n"
    (folder / "METADATA").write_text(about)
    found = check("torch", tmp_path, environment={"PYTHONPATH": str(tmp_path)})["torchvision"]
    assert found.level == level
    assert level == "ok" or "but it needs torch" in found.found


@without_gpu
def test_a_driver_that_is_too_old_is_an_error(tmp_path):
    if torch.version.cuda is None:
        pytest.skip("needs a torch with CUDA")
    library(tmp_path, DRIVER, "libcuda.so.1")
    found = check("torch", tmp_path, environment={"LD_LIBRARY_PATH": str(tmp_path)})["GPU"]
    assert found.level == "error"
    assert "driver" in found.found
    assert "too old" in found.found
    assert "update the NVIDIA driver" in found.remedy


@without_gpu
def test_a_driver_without_a_gpu_is_a_note(tmp_path):
    library(tmp_path, DRIVER, "libcuda.so.1")
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "NO_GPU": "1"}
    found = check("torch", tmp_path, environment=environment)["GPU"]
    assert found.level == "note"


@without_gpu
@pytest.mark.parametrize(
    ("device", "level"), [("nvidia0", "error"), ("nvidiactl", "note"), ("null", "note")]
)
def test_a_gpu_without_a_driver_is_an_error(tmp_path, device, level):
    (tmp_path / device).touch()
    assert check_gpu(tmp_path).level == level


def test_a_working_compiler_caches_its_functions(tmp_path):
    found = check("compiler", tmp_path, environment={"XDG_CACHE_HOME": str(tmp_path)})
    assert {finding.level for finding in found.values()} == {"ok"}
    assert str(tmp_path) in found["compiled functions"].found
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT"),
        ("NUMBA_THREADING_LAYER", "none of them", "none of them"),
    ],
)
def test_a_broken_compiler_is_an_error(tmp_path, variable, value, words):
    found = check("compiler", tmp_path, environment={variable: value})["compiler"]
    assert found.level == "error"
    assert words in found.found


def test_a_missing_cache_folder_for_numba_is_a_note(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": str(tmp_path / "file")}
    # numba would also keep them beside the sources.
    package = Path(kdcache.__file__).parent
    mounts = [f"mount --bind {package} {package}", f"mount -o remount,bind,ro {package}"]
    found = check("compiler", tmp_path, environment=environment, mounts=mounts)
    assert found["compiler"].level == "ok"
    assert found["compiled functions"].level == "note"
    assert "XDG_CACHE_HOME" in found["compiled functions"].remedy


def test_ffcv_decodes_a_jpeg_as_pillow_does(tmp_path):
    found = check("decoder", tmp_path)
    assert [(finding.check, finding.level) for finding in found.values()] == [("decoder", "ok")]


@pytest.mark.parametrize(
    ("case", "words"),
    [({"CRASH": "1"}, "signal 6"), ({"SAYS_SO": "1"}, "cannot be decoded"), ({}, "differ")],
    ids=str,
)
def test_a_decoder_that_crashes_fails_or_returns_wrong_pixels_is_an_error(tmp_path, case, words):
    library(tmp_path, DECODER, "libturbojpeg.so.0", DECODER_VERSIONS)
    instead = {"LD_LIBRARY_PATH": str(tmp_path)}
    found = check("decoder", tmp_path, environment=instead | case)["decoder"]
    assert found.level == "error"
    assert words in found.found
    assert found.remedy


def test_a_damaged_library_of_ffcv_is_an_error(tmp_path):
    spec = importlib.util.find_spec("ffcv")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    copy = tmp_path / "ffcv"
    copy.mkdir()
    for path in installed.iterdir():
        (copy / path.name).symlink_to(path)
    (whole,) = copy.glob("_libffcv*.so")
    content = whole.read_bytes()
    whole.unlink()
    whole.write_bytes(content[:4096])  # the rest of it may hold symbols for debuggers alone
    found = check("decoder", tmp_path, environment={"PYTHONPATH": str(tmp_path)})["decoder"]
    assert found.level == "error"
    assert "the process ended with" in found.found  # an ImportError, or a bus error
    assert found.remedy == "the remedy of the group"


def test_an_incomplete_scikit_learn_is_an_error(tmp_path):
    """The digits are read from its files, without importing it."""
    about = tmp_path / "scikit_learn-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.0\n")
    (about / "RECORD").touch()
    found = check("packages", tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert {name for name, one in found.items() if one.level == "error"} == {"digits"}
    assert "pip install" in found["digits"].remedy


@pytest.mark.parametrize(("name", "finding"), [("zarr", "store"), ("safetensors", "weights")])
def test_a_broken_package_does_not_hide_the_others(tmp_path, name, finding):
    broken = package(tmp_path, name, "raise OSError('damaged')")
    found = check("packages", tmp_path, environment=broken)
    assert {name for name, one in found.items() if one.level == "error"} == {finding}
    assert found.keys() == {"digits", "store", "weights"}
    assert "OSError: damaged" in found[finding].found
    assert "pip install" in found[finding].remedy

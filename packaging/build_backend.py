"""setuptools' build backend, behind a check of what FFCV is compiled with.

pip asks this backend before it builds any dependency. So a missing library is reported in a few
lines that say what to run, and not in a page of compiler output after a download of gigabytes.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.metadata import distributions
from typing import Any

from prerequisites import advice, problem
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (every hook that is not replaced below)

SKIP = "KDCACHE_SKIP_BUILD_CHECK"


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Check what FFCV needs, then ask setuptools."""
    _check()
    return build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Check what FFCV needs, then ask setuptools."""
    _check()
    return build_meta.get_requires_for_build_editable(config_settings)


def _check() -> None:
    if os.environ.get(SKIP) == "1" or _has_ffcv():
        return
    missing = problem(dict(os.environ))
    if missing is not None:
        sys.exit(f"\n{advice(missing)}\n    FFCV is not needed here:  export {SKIP}=1\n")


def _has_ffcv() -> bool:
    """Return whether the environment that is installed into has FFCV already."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return any(found.name == "ffcv" for found in distributions(path=sorted(folders)))

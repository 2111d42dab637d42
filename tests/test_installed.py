"""What is tested is the installed package, where the tests were asked to test that."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import kdcache
from kdcache.pipeline_runs.pipeline import bundled_pipelines
from tests.conftest import ROOT


def test_the_package_under_test_is_the_installed_one():
    if os.environ.get("KDCACHE_TEST_INSTALLED") != "1":
        pytest.skip("the tests run in a checkout; `make test-all` runs them on an installed wheel")
    package = Path(kdcache.__file__)
    assert package.is_relative_to(sys.prefix)
    assert not package.is_relative_to(ROOT)
    beside = {path.name for path in package.parents[1].iterdir()}
    assert {"PIL", "numba", "torch"} <= beside


def test_pipelines_and_type_marker_are_installed_with_the_package():
    ours = ROOT / "pipelines"
    pipelines = {path.relative_to(ours) for path in ours.rglob("*.toml")}
    installed = bundled_pipelines()
    assert pipelines
    assert pipelines == {path.relative_to(installed) for path in installed.rglob("*.toml")}
    assert (Path(kdcache.__file__).parent / "py.typed").is_file()

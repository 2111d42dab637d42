"""What is tested is the installed package, where the tests were asked to test that."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import kdcache
from tests.conftest import ROOT


def test_the_package_under_test_is_the_installed_one():
    if os.environ.get("KDCACHE_TEST_INSTALLED") != "1":
        pytest.skip("the tests run in a checkout; `make test-all` runs them on an installed wheel")
    package = Path(kdcache.__file__)
    assert package.is_relative_to(sys.prefix)
    assert not package.is_relative_to(ROOT)
    beside = {path.name for path in package.parents[1].iterdir()}
    assert {"PIL", "numba", "torch"} <= beside


def test_recipes_and_type_marker_are_installed_with_the_package():
    recipes = {path.name for path in (ROOT / "pipelines").glob("*.toml")}
    installed = {path.name for path in files("kdcache.pipelines").iterdir()}
    assert recipes
    assert recipes <= installed
    assert files("kdcache").joinpath("py.typed").is_file()

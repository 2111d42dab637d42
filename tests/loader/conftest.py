"""The tiny beton, and stores whose every row tells its sample id and view."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.data.beton import Beton, open_beton
from kdcache.store.logit_store import LogitStore
from tests.spelled import write_spelled_store

NUM_VIEWS = 3


@pytest.fixture(scope="module")
def beton(tiny_beton: Path) -> Beton:
    return open_beton(tiny_beton)


@pytest.fixture(scope="module")
def spelled_stores(beton: Beton, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LogitStore]:
    folder = tmp_path_factory.mktemp("spelled")
    return {
        codec: write_spelled_store(folder / codec, beton, num_views=NUM_VIEWS, codec=codec)
        for codec in ("dense", "float32")
    }


@pytest.fixture
def store(spelled_stores: dict[str, LogitStore]) -> LogitStore:
    return spelled_stores["dense"]

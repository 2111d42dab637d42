"""What many tests of the store do: build one small store, check it, damage it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.options import BuildLogitsOptions, VerifyOptions
from kdcache.store.build.build import build_logits
from kdcache.store.build.verify import verify

NUM_SAMPLES = 72
SHARDS = 9
"""Of each view of all samples, 8 rows each."""

PROJECTION = "tests.teachers:projection"
SLOW = "tests.store.teachers:slow"
WITH_HEAD = "tests.store.teachers:with_head"


def build(workspace: Path, teacher: str = PROJECTION, **options: Any) -> dict[str, Any]:
    """Build as `tiny_store` was built, but for the options."""
    given = {"views": 3, "codec": "float32", "batch_size": 8, "device": "cpu"} | options
    return build_logits(BuildLogitsOptions(teacher=teacher, workspace=workspace, **given)).to_json()


def check(workspace: Path, **options: Any) -> dict[str, Any]:
    """Run verify."""
    if options.get("teacher") or options.get("repair"):
        options = {"device": "cpu"} | options
    return verify(VerifyOptions(workspace=workspace, **options)).to_json()


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file, in a new file: other names of the old one keep their bytes."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()
    path.write_bytes(content)

"""What a teacher is asked before a store is made: does it fit, and may its answers be cached?"""

from __future__ import annotations

import pytest

from kdcache.compute.device import resolve_device
from kdcache.data.beton import open_beton
from kdcache.data.views import default_views
from kdcache.errors import TeacherError
from kdcache.store.build.preflight import run_preflight
from kdcache.teacher.forward import TeacherForward
from tests.store import teachers
from tests.store.builds import build
from tests.store.conftest import snapshot


@pytest.mark.parametrize("name", ["dropping", "comparing"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_that_answers_an_image_otherwise_the_second_time_is_refused(
    workspace, name, precision
):
    with pytest.raises(
        TeacherError, match=rf"sample \d+ other logits .*differ by \d+\.\d+ of .* at {precision}"
    ):
        build(workspace, f"tests.store.teachers:{name}", views=0, precision=precision)
    assert not (workspace / "stores" / f"{name}.zarr").exists()


def test_a_batch_beyond_memory_is_refused_with_one_that_fits(workspace):
    teacher = "tests.store.teachers:hungry"
    with pytest.raises(TeacherError, match=r"batch_size=16: .*Use batch_size=4, which"):
        build(workspace, teacher, views=0, batch_size=16)
    assert not (workspace / "stores" / "hungry.zarr").exists()
    assert build(workspace, teacher, views=0, batch_size=4)["teacher_forwards"] == 72


def test_memory_that_runs_out_amid_the_pass_loses_no_shard(workspace, tiny_store):
    # Before the pass: one batch twice, and eight labelled ones under four normalisations.
    teachers.Growing.batches_left = 2 + 8 * 4 + 5  # then five shards of view 0
    with pytest.raises(TeacherError, match=r"batch_size=8: .*that are written are kept"):
        build(workspace, "tests.store.teachers:growing", views=0)
    found, expected = snapshot(workspace / "stores" / "growing.zarr"), snapshot(tiny_store.path)
    shards = {name for name in found if name.startswith("views/0/rows/c/")}
    assert shards == {f"views/0/rows/c/{shard}/0" for shard in range(5)}
    assert all(found[name] == expected[name] for name in found if "/c/" in name)
    assert not list(workspace.rglob("*.partial"))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_a_good_teacher_passes_with_any_batch_and_tells_its_time(tiny_beton, batch_size):
    beton = open_beton(tiny_beton)
    teachers.SHAPES_SEEN.clear()
    forward = TeacherForward(
        teachers.counted(),
        num_classes=4,
        mean=beton.manifest.mean,
        std=beton.manifest.std,
        device=resolve_device("cpu"),
        precision="fp32",
    )
    found = run_preflight(forward, beton, default_views(beton.manifest), batch_size)
    assert found.feature_width is None
    assert 0 < found.seconds < 10
    assert [(batch_size, 3, 32, 32)] * 2 == teachers.SHAPES_SEEN

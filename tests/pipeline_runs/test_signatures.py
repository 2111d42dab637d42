"""What is read decides whether a step runs: every file of a source, however it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.options import PackOptions
from kdcache.pipeline_runs.signatures import inputs_of, signature_of_images
from kdcache.workspace import Workspace


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three files in two folders, one of which is behind a link."""
    for name in ("train/ant/1.jpg", "elsewhere/bee/1.jpg", "elsewhere/bee/2.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    (tmp_path / "train/bee").symlink_to(tmp_path / "elsewhere/bee")
    return tmp_path


@pytest.mark.parametrize(
    "source",
    ["{}", "hf:{}", "{}/train", "{}/elsewhere/bee/*.jpg", "{}/elsewhere/bee/{{1..2}}.jpg"],
)
def test_another_file_is_another_signature_however_the_source_is_named(images, source):
    named = source.format(images)
    before = signature_of_images(named)
    assert before is not None
    assert signature_of_images(named) == before
    (images / "elsewhere/bee/2.jpg").write_bytes(b"22")
    assert signature_of_images(named) != before


def test_links_in_a_circle_and_to_nothing_end(images):
    (images / "train/circle").symlink_to(images)
    (images / "train/gone").symlink_to(images / "nothing")
    assert signature_of_images(str(images)) == signature_of_images(str(images))


@pytest.mark.parametrize("source", ["digits", "hf:org/name", "none-{1..2.tar", "none-*.tar"])
def test_what_is_no_file_has_no_signature(images, monkeypatch, source):
    monkeypatch.chdir(images)
    assert signature_of_images(source) is None


def test_the_evaluation_source_is_an_input_too(images):
    train, val = str(images / "train"), str(images / "elsewhere")
    found = inputs_of(PackOptions(train, val_source=val), Workspace(images / "workspace"))
    assert found.keys() == {train, val}
    (images / "elsewhere/bee/2.jpg").unlink()
    after = inputs_of(PackOptions(train, val_source=val), Workspace(images / "workspace"))
    assert after[val] != found[val]

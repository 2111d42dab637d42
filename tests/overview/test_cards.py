"""What a file says of itself, without a heavy library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kdcache.data.beton_manifest import BetonManifest
from kdcache.errors import CacheCorruptError, ConfigError, KDCacheError, WeightsError
from kdcache.options import ShowOptions
from kdcache.overview.cards import show
from kdcache.store.format.layout import complete_key
from kdcache.store.logit_store import LogitStore
from tests.workspaces import metrics


def card(path: Path | str) -> dict:
    return show(ShowOptions(str(path))).to_json()


def test_the_card_of_a_beton_has_the_fields_of_its_manifest(full_workspace):
    found = card(full_workspace / "train.beton")
    about = BetonManifest.load(full_workspace / "train.beton").to_json()
    assert (found["kind"], found["samples"], found["classes"]) == ("beton", 72, 4)
    assert found["bytes"] == (full_workspace / "train.beton").stat().st_size
    for name in ("policy", "image_size", "mean", "std", "fingerprint", "made_from", "class_names"):
        assert found[name] == about[name]


def test_the_card_of_a_teacher_has_its_accuracy_and_its_data(full_workspace):
    found = card(full_workspace / "teachers/resnet8.safetensors")
    assert (found["kind"], found["arch"], found["epochs"]) == ("teacher", "resnet8", 1)
    assert 0 <= found["top1"] <= 100
    assert (
        found["data_fingerprint"] == BetonManifest.load(full_workspace / "train.beton").fingerprint
    )


def test_weights_of_another_program_have_a_tensor_count(tmp_path):
    save_file({"a": np.zeros(3), "b": np.ones((2, 2))}, tmp_path / "other.safetensors")
    assert card(tmp_path / "other.safetensors")["tensors"] == 2


def test_the_card_of_a_store_has_its_contents(full_workspace):
    path = full_workspace / "stores/resnet8.zarr"
    found = card(path)
    about = LogitStore.open(path).manifest
    assert (found["kind"], found["views"], found["rows"], found["samples"]) == ("store", 2, 72, 72)
    assert (found["codec"], found["row_bytes"], found["features"]) == ("dense", 8, False)
    assert found["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    for name in ("teacher_digest", "policy", "view_seed", "precision", "data_fingerprint"):
        assert found[name] == getattr(about, name)
    assert "unfinished" not in found


def test_the_card_of_an_unfinished_store_counts_complete_views(workspace):
    path = workspace / "stores/resnet8.zarr"
    (path / complete_key(2)).unlink()
    assert card(path)["unfinished"].startswith(
        "2 of 3 views are complete. Run kdcache build-logits"
    )


def test_the_card_of_a_subset_says_how_it_was_selected(full_workspace):
    found = card(full_workspace / "subsets/medium-0.7.npz")
    chosen = (found["kind"], found["kept"], found["method"], found["keep"], found["score"])
    assert chosen == ("subset", 50, "medium", 0.7, "cross_entropy")


def test_the_card_of_a_run_has_its_progress(workspace):
    (run,) = (workspace / "runs").glob("resnet8-medium*")
    found = card(run)
    lines = metrics(run)
    assert (found["kind"], found["epochs_done"]) == ("run", 2)
    assert found["top1_last"] == lines[-1]["top1"]
    assert found["top1_best"] == max(line["top1"] for line in lines)
    assert found["config"]["samples"] == 50
    assert "unfinished" not in found
    first, _ = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(first)
    assert card(run)["unfinished"].startswith("1 of 2 epochs done")
    assert f"--resume --out {run}" in card(run)["unfinished"]
    (run / "metrics.jsonl").write_text(first + first[:20])
    with pytest.raises(CacheCorruptError, match=r"metrics\.jsonl is damaged"):
        card(run)


def test_a_missing_or_unknown_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.zarr does not exist"):
        card(tmp_path / "nothing.zarr")
    (tmp_path / "notes.txt").write_text("milk")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a file of kdcache"):
        card(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"memory://nowhere/a\.zarr is not a file of kdcache"):
        card("memory://nowhere/a.zarr")


@pytest.mark.parametrize("name", ["t.safetensors", "s.npz"])
def test_the_error_of_a_damaged_file_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0" * 40)
    with pytest.raises((WeightsError, CacheCorruptError), match=name) as caught:
        card(tmp_path / name)
    assert isinstance(caught.value, KDCacheError)


def test_show_and_status_do_not_import_torch_or_ffcv(full_workspace):
    code = (
        "import sys; from kdcache.cli import main;"
        f"main(['--workspace', {str(full_workspace)!r}]);"
        f"[main(['show', str(path)]) for path in {[str(p) for p in things(full_workspace)]}];"
        "sys.exit(bool({'torch', 'ffcv'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\nkind ") + done.stdout.startswith("kind ") == len(
        things(full_workspace)
    )


def things(workspace: Path) -> list[Path]:
    """Return one path of each kind."""
    (run,) = (workspace / "runs").glob("resnet8-medium*")
    return [
        workspace / "train.beton",
        workspace / "teachers/resnet8.safetensors",
        workspace / "stores/resnet8.zarr",
        workspace / "subsets/medium-0.7.npz",
        run,
    ]

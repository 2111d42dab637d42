"""What a codec does to the gradient of a loss, on a store of known rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.options import BuildLogitsOptions, TrainOptions
from kdcache.store.build.build import build_logits
from kdcache.store.codecs.choice import choice_sample_ids, fidelities, held_out_rows
from kdcache.store.logit_store import LogitStore
from kdcache.training.losses.fidelity import fidelity_of
from kdcache.training.losses.settings import LossSettings
from tests.workspaces import copy_workspace


@pytest.fixture(scope="module")
def store(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """Two of four logits kept: a coarse codec."""
    workspace = copy_workspace(tiny_workspace, tmp_path_factory.mktemp("fidelity") / "workspace")
    result = build_logits(
        BuildLogitsOptions(
            teacher="tests.teachers:projection",
            workspace=workspace,
            views=1,
            codec="topk(k=2)",
            batch_size=8,
            device="cpu",
            store=str(workspace / "stores/coarse.zarr"),
        )
    ).to_json()
    return LogitStore.open(result["path"])


def settings_of(**options: object) -> LossSettings:
    return LossSettings.of(TrainOptions(**options))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_for_plain_kd_the_fidelity_is_that_of_the_codec_choice(store, temperature):
    ids = choice_sample_ids(store.manifest.samples, store.manifest.classes)
    ids = ids[held_out_rows(len(ids))]
    (expected,) = fidelities(store.codec, store.logits(ids, 0), ids, [temperature])
    found = fidelity_of(store, settings_of(temperature=temperature))
    assert expected.angle_degrees > 1e-3
    # The teacher's probabilities are float32 here, the student's float64 in both.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_fidelity_depends_on_the_loss(store):
    asked = ({}, {"loss": "dkd"}, {"loss": "dist"}, {"standardise": True}, {"reshape": True})
    angles = [fidelity_of(store, settings_of(**options)).angle_degrees for options in asked]
    assert len({round(angle, 3) for angle in angles}) == len(asked)
    assert all(0 < angle < 180 for angle in angles)


def test_the_fidelity_does_not_depend_on_alpha(store):
    low, high = (fidelity_of(store, settings_of(alpha=alpha)) for alpha in (0.1, 1.0))
    assert low == high

"""What a weights file states about its model, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import WeightsError
from kdcache.models.description import WeightsDescription
from kdcache.models.weights import load_weights, read_weights_description

PATH = Path("folder/w.safetensors")
EVERYTHING: dict[str, Any] = {
    "arch": "resnet8",
    "classes": 2,
    "class_names": ["cat", "dog"],
    "image_size": 32,
    "mean": [0.0, 0.5, 1],
    "std": [0.25, 0.5, 1],
    "stem": "small",
    "top1": 93.5,
    "data_fingerprint": "0" * 64,
}


def test_every_field_is_read_and_others_are_ignored():
    found = WeightsDescription.parse(EVERYTHING | {"seed": 3}, PATH)
    assert found == WeightsDescription(**EVERYTHING)
    assert found.normalisation == ([0.0, 0.5, 1], [0.25, 0.5, 1])


def test_nothing_stated_is_none_everywhere():
    found = WeightsDescription.parse({}, PATH)
    assert set(vars(found).values()) == {None}
    assert found.normalisation is None


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("arch", 8, "arch is 8, expected the name of a model"),
        ("classes", "2", "classes is '2', expected a whole number"),
        ("classes", True, "classes is True"),
        ("classes", 0, "classes is 0"),
        ("class_names", ["a", 1], "class_names is .* expected a list of texts"),
        ("class_names", ["a", "b", "c"], "class_names has 3 names, expected 2"),
        ("image_size", 32.5, "image_size is 32.5, expected a whole number of pixels"),
        ("image_size", [32, 32], "image_size is"),
        ("mean", [0.5, 0.5], r"mean is .*expected three numbers in \[0, 1\]"),
        ("mean", [123.7, 116.3, 103.5], r"mean is .*in \[0, 1\]"),
        ("mean", "imagenet", "mean is 'imagenet', expected three numbers"),
        ("std", [0.2, 0.0, 0.2], "std is .*above 0 and at most 1"),
        ("std", [0.2, float("nan"), 0.2], "std is"),
        ("std", None, "mean is stated and std is not, expected both or neither"),
        ("mean", None, "std is stated and mean is not"),
        ("stem", "tiny", "stem is 'tiny', expected one of small, standard"),
        ("top1", "93 %", "top1 is '93 %', expected a number of percent"),
        ("top1", 101, "top1 is 101"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_the_file(field, value, match):
    with pytest.raises(WeightsError, match=match) as error:
        WeightsDescription.parse(EVERYTHING | {field: value}, PATH)
    assert "folder/w.safetensors" in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "null", "3", '"resnet8"', "{", ""])
def test_metadata_that_are_no_object_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"kdcache_description": text})
    for read in (load_weights, read_weights_description):
        with pytest.raises(WeightsError, match=r"w\.safetensors is not usable: .*JSON object"):
            read(path)


def test_metadata_of_others_say_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt", "mean": "0.5"})
    assert read_weights_description(path) == {}
    save_file({"a": torch.ones(2)}, path, metadata={"kdcache_description": json.dumps(EVERYTHING)})
    assert read_weights_description(path) == EVERYTHING

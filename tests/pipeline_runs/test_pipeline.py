"""Recipes are read under the rules of the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdcache.errors import ConfigError
from kdcache.options import BuildLogitsOptions, PackOptions, SelectOptions, TrainOptions
from kdcache.pipeline_runs.pipeline import find_pipeline, read_pipeline

OURS = ("cifar10", "cifar100", "digits", "imagenet", "imagenet-mdslr", "tiny-imagenet")


def read(path: Path, source: str | None = None) -> list:
    return read_pipeline(path, workspace=Path("w"), source=source)


@pytest.fixture
def pipeline(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", OURS)
def test_our_pipelines_are_short_and_begin_with_what_they_cost(name):
    path = find_pipeline(name)
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    head = [line for line in lines[:6] if line.startswith("# ")]
    assert any(word in " ".join(head) for word in ("Cost: ", "minutes"))
    steps = read(path, source="images")
    assert steps[0].options == PackOptions(
        "images",
        workspace=Path("w"),
        max_resolution=500 if name.startswith("imagenet") else None,
    )
    assert {step.command for step in steps} >= {"pack", "build-logits", "select", "train"}


def test_every_pipeline_of_ours_is_tested():
    folder = find_pipeline("digits").parent
    assert {path.stem for path in folder.glob("*.toml")} == set(OURS)


def test_a_step_is_a_command_with_its_options(pipeline):
    path = pipeline(
        """
        [[step]]
        run = "build-logits"
        teacher = ["a", "b"]
        views = 3
        allow_mixed = true
        [[step]]
        run = "select"
        keep = 0.25
        min_per_class = 1
        [[step]]
        run = "train"
        kd = false
        [[step]]
        run = "train"
        name = "with"
        """
    )
    common = {"workspace": Path("w")}
    steps = read(path)
    assert [step.name for step in steps] == ["build-logits", "select", "train", "with"]
    assert [step.options for step in steps] == [
        BuildLogitsOptions(teacher=("a", "b"), views=3, allow_mixed=True, **common),
        SelectOptions(keep=0.25, min_per_class=1, **common),
        TrainOptions(kd=False, **common),
        TrainOptions(**common),
    ]


def test_steps_of_one_name_are_told_apart(pipeline):
    path = pipeline('[[step]]\nrun = "train"\n' * 3 + '[[step]]\nrun = "train"\nname = "train 2"\n')
    assert [step.name for step in read(path)] == ["train", "train 2", "train 3", "train 2 2"]


def test_what_is_off_may_be_said_to_be_off(pipeline):
    text = '[[step]]\nrun = "train"\nsubset = "full"\nreshape = false\nkd = false\n'
    (step,) = read(pipeline(text))
    expected = {"subset": "full", "reshape": False, "kd": False}
    assert step.options == TrainOptions(**expected, workspace=Path("w"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"own\.toml is not a pipeline: step is None, .*\[\[step\]\]"),
        ("step = ", r"own\.toml is not a pipeline"),
        ('[[step]]\nrun = "fly"', r"run of step 1 of .* is 'fly', expected pack, train-teacher"),
        ("[[step]]\nkeep = 1", r"run of step 1 of .* is None"),
        ('[[step]]\nrun = "verify"', r"is 'verify', expected"),
        ('[[step]]\nrun = "select"\nkeep = 3', r"step 1 of .*, select: keep=3\.0"),
        ('[[step]]\nrun = "select"\nkep = 0.3', r"step 1 of .*, select: .*kep"),
        ('[[step]]\nrun = "select"\nkeep = "most"', r"select: .*keep.*most"),
        ('[[step]]\nrun = "select"\noverwrit = false', r"select: .*overwrit"),
        ('[[step]]\nrun = "pack"', r"pack: source is not given.* kdcache run PIPELINE --source"),
        ("step = 3", r"is not a pipeline: step is 3, expected \[\[step\]\]"),
        ("step = [1]", r"is not a pipeline: step is \[1\]"),
        ("step = []", r"is not a pipeline: step is \[\]"),
        ('[step]\nrun = "select"', r"is not a pipeline: step is \{'run': 'select'\}"),
        ('epochs = 3\n[[step]]\nrun = "select"', r"is not a pipeline: it holds epochs"),
        ('[[step]]\nrun = "select"\nhelp = true', r"step 1 of .* has help = True"),
        ('[[step]]\nrun = "select"\nworkspace = "w"', r"has workspace = 'w', .*--workspace"),
    ],
)
def test_what_is_no_pipeline_is_refused_with_its_place(pipeline, text, message):
    with pytest.raises(ConfigError, match=message):
        read(pipeline(text))


def test_a_pipeline_that_is_not_there_is_named_with_ours(tmp_path):
    with pytest.raises(ConfigError, match=r"PIPELINE is digit, expected one of cifar10, .*digits"):
        find_pipeline("digit")
    with pytest.raises(ConfigError, match=r"PIPELINE is .*none\.toml, .*does not exist"):
        find_pipeline(str(tmp_path / "none.toml"))


def test_a_source_for_a_pipeline_that_packs_nothing_is_refused(pipeline):
    with pytest.raises(ConfigError, match=r"source=images: .* no pack step"):
        read(pipeline('[[step]]\nrun = "select"'), source="images")


def test_the_old_name_of_a_step_works_and_one_line_says_so(pipeline, caplog):
    steps = read(pipeline('[[stage]]\nrun = "select"\nkeep = 0.25\n'))
    assert [step.options.keep for step in steps] == [0.25]
    (note,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"own\.toml: \[\[stage\]\] is the old name of \[\[step\]\]", note)


def test_old_and_new_names_are_not_mixed(pipeline):
    text = '[[step]]\nrun = "select"\n[[stage]]\nrun = "train"\n'
    with pytest.raises(ConfigError, match=r"is not a pipeline: it holds stage, expected"):
        read(pipeline(text))

"""Recipes are read under the rules of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.errors import ConfigError
from kdcache.options import BuildLogitsOptions, PackOptions, SelectOptions, TrainOptions
from kdcache.pipeline_runs.pipeline import find_pipeline, read_pipeline

OURS = ("cifar10", "cifar100", "digits", "imagenet", "imagenet-mdslr", "tiny-imagenet")


def read(path: Path, source: str | None = None) -> list:
    return read_pipeline(path, workspace=Path("w"), quiet=True, source=source)


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", OURS)
def test_our_recipes_are_short_and_begin_with_what_they_cost(name):
    path = find_pipeline(name)
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    head = [line for line in lines[:6] if line.startswith("# ")]
    assert any(word in " ".join(head) for word in ("Cost: ", "minutes"))
    stages = read(path, source="images")
    assert stages[0].options == PackOptions(
        "images",
        workspace=Path("w"),
        quiet=True,
        max_resolution=500 if name.startswith("imagenet") else None,
    )
    assert {stage.command for stage in stages} >= {"pack", "build-logits", "select", "train"}


def test_every_recipe_of_ours_is_tested():
    folder = find_pipeline("digits").parent
    assert {path.stem for path in folder.glob("*.toml")} == set(OURS)


def test_a_stage_is_a_command_with_its_options(recipe):
    path = recipe(
        """
        [[stage]]
        run = "build-logits"
        teacher = ["a", "b"]
        views = 3
        allow_mixed = true
        [[stage]]
        run = "select"
        keep = 0.25
        min_per_class = 1
        [[stage]]
        run = "train"
        kd = false
        [[stage]]
        run = "train"
        name = "with"
        """
    )
    common = {"workspace": Path("w"), "quiet": True}
    stages = read(path)
    assert [stage.name for stage in stages] == ["build-logits", "select", "train", "with"]
    assert [stage.options for stage in stages] == [
        BuildLogitsOptions(teacher=("a", "b"), views=3, allow_mixed=True, **common),
        SelectOptions(keep=0.25, min_per_class=1, **common),
        TrainOptions(kd=False, **common),
        TrainOptions(**common),
    ]


def test_stages_of_one_name_are_told_apart(recipe):
    path = recipe('[[stage]]\nrun = "train"\n' * 3 + '[[stage]]\nrun = "train"\nname = "train 2"\n')
    assert [stage.name for stage in read(path)] == ["train", "train 2", "train 3", "train 2 2"]


def test_what_is_off_may_be_said_to_be_off(recipe):
    text = '[[stage]]\nrun = "train"\nsubset = "full"\nreshape = false\nkd = false\n'
    (stage,) = read(recipe(text))
    expected = {"subset": "full", "reshape": False, "kd": False}
    assert stage.options == TrainOptions(**expected, workspace=Path("w"), quiet=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"own\.toml is no recipe: stage is None, .*\[\[stage\]\]"),
        ("stage = ", r"own\.toml is no recipe"),
        ('[[stage]]\nrun = "fly"', r"run of stage 1 of .* is 'fly', expected pack, train-teacher"),
        ("[[stage]]\nkeep = 1", r"run of stage 1 of .* is None"),
        ('[[stage]]\nrun = "verify"', r"is 'verify', expected"),
        ('[[stage]]\nrun = "select"\nkeep = 3', r"stage 1 of .*, select: --keep is 3\.0"),
        ('[[stage]]\nrun = "select"\nkep = 0.3', r"stage 1 of .*, select: .*--kep"),
        ('[[stage]]\nrun = "select"\nkeep = "most"', r"select: .*--keep.*most"),
        ('[[stage]]\nrun = "select"\noverwrit = false', r"select: .*--no-overwrit"),
        ('[[stage]]\nrun = "pack"', r"pack: --source is not given.* kdcache run RECIPE --source"),
        ("stage = 3", r"is no recipe: stage is 3, expected \[\[stage\]\]"),
        ("stage = [1]", r"is no recipe: stage is \[1\]"),
        ("stage = []", r"is no recipe: stage is \[\]"),
        ('[stage]\nrun = "select"', r"is no recipe: stage is \{'run': 'select'\}"),
        ('epochs = 3\n[[stage]]\nrun = "select"', r"is no recipe: it holds epochs"),
        ('[[stage]]\nrun = "select"\nhelp = true', r"stage 1 of .* has help = True"),
        ('[[stage]]\nrun = "select"\nworkspace = "w"', r"has workspace = 'w', .*--workspace"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(recipe, text, message):
    with pytest.raises(ConfigError, match=message):
        read(recipe(text))


def test_a_recipe_that_is_not_there_is_named_with_ours(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe is digit, expected one of cifar10, .*digits"):
        find_pipeline("digit")
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        find_pipeline(str(tmp_path / "none.toml"))


def test_a_source_for_a_recipe_that_packs_nothing_is_refused(recipe):
    with pytest.raises(ConfigError, match=r"--source is images, but .* no stage that packs"):
        read(recipe('[[stage]]\nrun = "select"'), source="images")

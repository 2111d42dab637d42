"""A grid says which students there are, in which order, and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.errors import ConfigError
from kdcache.options import StudyOptions
from kdcache.studies.grid import Grid, find_grid, read_grid
from kdcache.studies.study import study
from kdcache.studies.training_length import TrainingLength

HEAD = """
[teachers.big]
model = "resnet20"
epochs = 6
[teachers.early]
of = "big"
epoch = 2
[teachers.same]
model = "resnet20"
epochs = 6
[defaults]
data = "digits"
teacher = "big"
"""


def grid(tmp_path: Path, *blocks: str, head: str = HEAD, **options: float) -> Grid:
    path = tmp_path / "grid.toml"
    tables = [f'[[block]]\nname = "b{n}"\npriority = {n}\n{text}' for n, text in enumerate(blocks)]
    path.write_text("\n".join([head, *tables]))
    return read_grid(path, **options)


def chosen(found: Grid, *names: str) -> list[tuple[object, ...]]:
    return [tuple(cell.settings[name] for name in names) for cell in found.cells]


def test_a_block_is_the_product_of_its_lists_seed_by_seed(tmp_path):
    found = grid(tmp_path, 'keep = [0.1, 0.3]\nmethod = ["random", "medium"]\nseeds = 2')
    assert chosen(found, "seed", "keep", "method") == [
        (seed, keep, method)
        for seed in (0, 1)
        for keep in (0.1, 0.3)
        for method in ("random", "medium")
    ]


def test_include_and_exclude_remove_cells(tmp_path):
    found = grid(
        tmp_path,
        "keep = [0.1, 0.3]\nviews = [1, 2]\nseeds = 3\n"
        "include = [{ keep = 0.1 }, { views = 2 }]\n"
        "exclude = [{ views = [1, 2], seed = [1, 2] }]",
    )
    assert chosen(found, "keep", "views", "seed") == [(0.1, 1, 0), (0.1, 2, 0), (0.3, 2, 0)]


def test_unused_settings_do_not_make_a_second_cell(tmp_path):
    """Without KD no alpha counts; of all data no method; of a random draw no teacher's score."""
    labels = grid(tmp_path, "kd = false\nalpha = [0.1, 0.9]\nviews = [1, 2]\nkeep = 0.3")
    assert len(labels.cells) == 1
    whole = grid(tmp_path, 'method = ["random", "hard"]\nkeep = 1.0')
    assert chosen(whole, "method", "score_teacher") == [("all", None)]
    drawn = grid(tmp_path, 'keep = 0.3\nkd = false\nteacher = ["big", "early"]')
    assert len(drawn.cells) == 1
    scored = grid(tmp_path, 'method = "hard"\nkeep = 0.3\nkd = false\nteacher = ["big", "early"]')
    assert chosen(scored, "teacher", "score_teacher") == [(None, "big"), (None, "early")]


def test_a_student_in_two_blocks_is_one_cell_of_the_first_block(tmp_path):
    found = grid(tmp_path, "alpha = 0.9", "alpha = [0.5, 0.9]")
    assert [(cell.block, cell.settings["alpha"]) for cell in found.cells] == [
        ("b0", 0.9),
        ("b1", 0.5),
    ]


def test_a_cell_is_identified_by_its_teachers_definition_not_its_name(tmp_path):
    found = grid(tmp_path, 'teacher = ["big", "same", "early"]')
    assert len(found.cells) == 2


def test_blocks_of_equal_priority_run_seed_by_seed(tmp_path):
    text = HEAD + "".join(
        f'[[block]]\nname = "{name}"\npriority = 1\nkeep = {keep}\nseeds = 2\n'
        for name, keep in (("a", 0.1), ("b", 0.3))
    )
    found = grid(tmp_path, head=text)
    assert chosen(found, "keep", "seed") == [(0.1, 0), (0.3, 0), (0.1, 1), (0.3, 1)]


@pytest.mark.parametrize(
    ("block", "values"),
    [
        ('method = "best"', ["method is 'best'", "random, easy", "b0"]),
        ("keep = [0.1, 1.5]", ["keep is 1.5", "(0, 1]"]),
        ('teacher = "huge"', ["teacher is huge", "big, early", "[teachers.NAME]"]),
        ('recipe = "20 rounds"', ["recipe is '20 rounds'", "'20 epochs'"]),
        ("views = 2.5", ["views is 2.5", "int or str"]),
        ('views = "dead"', ["views is 'dead'", "'live'"]),
        ("seeds = 0", ["seeds is 0", "above 0"]),
        ("keep = []", ["keep is []"]),
        ("kept = 0.5", ["kept is not a key of block 'b0'", "keep"]),
        ("exclude = [{ kept = 0.5 }]", ["kept is not a key of exclude"]),
        ("exclude = [{ keep = 1.0 }]\nkeep = 1.0", ["leave no cell"]),
        ("tuning = true", ["tuning = true", "tune_fraction=0.1"]),
        ("label_noise = 1", ["label_noise is 1", "[0, 1)"]),
        ('make = ["huge"]', ["make names 'huge'"]),
        ("epochs = 3", ["epochs is not a key"]),
    ],
)
def test_the_error_of_an_unknown_value_names_it(tmp_path, block, values):
    with pytest.raises(ConfigError) as raised:
        grid(tmp_path, block)
    assert [value for value in values if value not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("block", "head", "values"),
    [
        ('student = "resnet9"', HEAD, ["student=resnet9", "resnet8"]),
        ('loss = "l2"', HEAD, ["l2", "dkd"]),
        ("alpha = 1.5", HEAD, ["1.5", "[0, 1]", "b0"]),
        ("lr = -1.0", HEAD, ["lr=-1.0", "b0"]),
        ('optimizer = "adam"', HEAD, ["adam", "adamw"]),
        ('method = "window"\nkeep = 0.5', HEAD, ["start is not given", "window"]),
        ("keep = 0.5", HEAD.replace("epochs = 6", "epochs = -6", 1), ["epochs=-6"]),
        ("keep = 0.5", HEAD.replace("resnet20", "resnet21"), ["resnet21", "[teachers.big]"]),
    ],
)
def test_every_value_is_checked_before_anything_runs(tmp_path, block, head, values):
    head = head.replace('[teachers.early]\nof = "big"\nepoch = 2\n', "")
    path = tmp_path / "grid.toml"
    path.write_text(f'{head}\n[[block]]\nname = "b0"\npriority = 0\n{block}')
    workspace = tmp_path / "workspace"
    with pytest.raises(ConfigError) as raised:
        study(StudyOptions(str(path), workspace=workspace))
    assert [value for value in values if value not in str(raised.value)] == []
    assert not workspace.exists()


def test_a_missing_source_block_or_grid_is_an_error(tmp_path):
    options = {"workspace": tmp_path / "workspace"}
    with pytest.raises(ConfigError, match=r"digits=/no/such, .*does not exist"):
        study(StudyOptions("digits", source=("digits=/no/such",), **options))
    with pytest.raises(ConfigError, match=r"has no data set cifar"):
        study(StudyOptions("digits", source=("cifar=/no/such",), **options))
    with pytest.raises(ConfigError, match=r"block=third: expected one of teachers, first"):
        study(StudyOptions("digits", block=("third",), **options))
    with pytest.raises(ConfigError, match=r"GRID is digit, expected .*digits"):
        study(StudyOptions("digit", **options))
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("text", "samples", "words", "arm"),
    [
        ("20 epochs", 1_000, ["--epochs=20", "--eval-every=7"], "epochs"),
        ("2600 steps", 5_000, ["--steps=2600", "--eval-every=22"], "steps"),
        ("max(20 epochs, 2_600 steps)", 50_000, ["--epochs=20", "--eval-every=7"], "longer"),
        ("max(20 epochs, 2600 steps)", 15_000, ["--steps=2600", "--eval-every=8"], "longer"),
        ("max(20 epochs, 2600 steps)", 16_640, ["--epochs=20", "--eval-every=7"], "longer"),
    ],
)
def test_a_recipe_gives_the_length_in_options_of_train(text, samples, words, arm):
    recipe = TrainingLength.parse(text)
    assert recipe.words(samples=samples, batch_size=128, evaluations=3) == words
    assert recipe.arm == arm
    assert TrainingLength.parse(str(recipe)) == recipe


@pytest.mark.parametrize("text", ["0 epochs", "epochs", "max(2 epochs, 3 epochs)", "2 epochs, 3"])
def test_a_malformed_recipe_is_an_error(text):
    with pytest.raises(ConfigError, match="recipe is"):
        TrainingLength.parse(text)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_grids_of_the_benchmarks_are_readable(name):
    found = read_grid(Path(__file__).parents[2] / f"benchmarks/study/{name}.toml")
    assert found.cells
    assert {cell.settings["data"] for cell in found.cells} == {name}
    assert read_grid(find_grid("digits")).cells


def test_a_tuning_fraction_makes_every_cell_a_tuning_cell(tmp_path):
    plain = grid(tmp_path, "keep = 1.0")
    tuning = grid(tmp_path, "keep = 1.0", tune_fraction=0.1)
    asked = grid(tmp_path, "tuning = true\nkeep = 1.0", head="tune_fraction = 0.1\n" + HEAD)
    assert [cell.is_tuning for found in (plain, tuning, asked) for cell in found.cells] == [
        False,
        True,
        True,
    ]
    assert tuning.cells[0].id == asked.cells[0].id != plain.cells[0].id


def test_the_teachers_of_a_tuning_block_train_without_the_held_out_part(tmp_path):
    made = grid(tmp_path, 'tuning = true\nmake = ["big"]', head="tune_fraction = 0.1\n" + HEAD)
    assert [(block.make, block.tune_fraction) for block in made.blocks] == [(("big",), 0.1)]

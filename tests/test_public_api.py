"""The package as a library: its names, their signatures, and the errors of wrong calls."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch

import kdcache as kd
from kdcache.cli import main
from kdcache.commands import COMMANDS
from kdcache.errors import FLAGS, ConfigError, DatasetError, KDCacheError, in_python, shell_line
from kdcache.overview import facts

FUNCTIONS = sorted(name.replace("-", "_") for name in COMMANDS)


def test_every_public_name_loads_and_is_offered_by_tab_completion():
    assert set(kd.__all__) <= set(dir(kd))
    for name in kd.__all__:
        assert getattr(kd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = kd.trian


def test_every_command_is_a_function():
    assert set(FUNCTIONS) <= set(kd.__all__)


def test_no_module_hides_a_public_function():
    modules = {path.stem for path in Path(kd.__file__).parent.iterdir()}
    assert not modules & set(FUNCTIONS)


def test_naming_a_function_loads_no_heavy_library():
    code = (
        "import sys, kdcache\n"
        "kdcache.train, kdcache.build_logits, dir(kdcache), kdcache.errors\n"
        "print(sorted({'torch', 'numpy', 'numba', 'zarr', 'pyarrow'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_of_its_command(name):
    options, _ = COMMANDS[name.replace("_", "-")]
    signature = inspect.signature(getattr(kd, name))
    assert list(signature.parameters) == list(inspect.signature(options).parameters)
    for one in fields(options):
        assert f"\n    {one.name}: " in inspect.getdoc(getattr(kd, name)) + "\n", one.name
    assert "\n\nReturns:\n    " in inspect.getdoc(getattr(kd, name))
    assert inspect.signature(getattr(kd, name)).return_annotation[0].isupper()
    mentioned = re.sub(r"kdcache [a-z-]+ --.*", "", inspect.getdoc(getattr(kd, name)))
    assert not re.findall(r"(?<!\w)--[a-z]+", mentioned)


def test_the_workspace_comes_first_unless_the_command_needs_a_subject():
    first = {
        name: next(iter(inspect.signature(getattr(kd, name)).parameters)) for name in FUNCTIONS
    }
    subjects = {
        "pack": "source",
        "show": "path",
        "run": "pipeline",
        "study": "grid",
        "merge": "parts",
        "export": "out",
        "score": "name",
    }
    assert first == {name: subjects.get(name, "workspace") for name in FUNCTIONS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_type_hints_of_a_function_can_be_evaluated(name):
    hints = get_type_hints(getattr(kd, name))
    signature = inspect.signature(getattr(kd, name))
    assert list(hints) == [*signature.parameters, "return"]
    assert hints["return"].__name__ == signature.return_annotation


def test_a_wrong_value_is_named_in_the_words_of_the_caller(tmp_path, capsys):
    with pytest.raises(ConfigError) as raised:
        kd.select(tmp_path, keep=1.5)
    error = raised.value
    assert (error.parameter, error.value, error.rule) == ("keep", 1.5, "a number in (0, 1]")
    assert str(error) == "keep=1.5: expected a number in (0, 1]"
    assert main(["select", "--keep", "1.5", "--workspace", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "kdcache: --keep 1.5: expected a number in (0, 1]\n"


def test_underscores_become_dashes_in_a_shell(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"^min_per_class=-1: expected a number of at least 0$"):
        kd.select(tmp_path, min_per_class=-1)
    assert main(["select", "--min-per-class", "-1", "--workspace", str(tmp_path)]) == 2
    assert "--min-per-class -1: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("train", {"epochs": "3"}, r"^epochs=3: expected int"),
        ("train", {"workspace": ""}, r"^workspace='': expected the path of a folder"),
        ("train", {"epochs": True}, r"^epochs=True: expected int"),
        ("train", {"optimizer": "adam"}, r"^optimizer=adam: expected .*'sgd', 'adamw'"),
        ("train", {"kd": 0}, r"^kd=0: expected bool"),
        ("build_logits", {"teacher": 3}, r"^teacher=3: expected "),
        ("select", {"average_with": ["a", 3]}, r"^average_with="),
    ],
)
def test_a_value_of_another_type_is_refused_before_anything_runs(tmp_path, name, given, message):
    with pytest.raises(ConfigError, match=message) as raised:
        getattr(kd, name)(**({"workspace": tmp_path / "none"} | given))
    assert [raised.value.parameter] == list(given)
    assert not (tmp_path / "none").exists()


def test_an_unknown_argument_names_the_function():
    with pytest.raises(TypeError, match=r"kdcache\.train\(\): .*'epoch'"):
        kd.train(epoch=3)


def test_the_workspace_of_the_environment_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCACHE_WORKSPACE", str(tmp_path / "mine"))
    data = kd.pack("digits")
    assert data.train.path == tmp_path / "mine" / "train.beton"


def test_tab_completion_of_the_errors_offers_errors_alone():
    assert "ConfigError" in dir(kd.errors)
    assert all(issubclass(getattr(kd.errors, name), KDCacheError) for name in dir(kd.errors))


def test_the_pipeline_from_python(tmp_path):
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    data = kd.pack("digits", workspace=tmp_path)
    assert (len(data.train), len(data.val or [])) == (1438, 359)
    assert repr(data.train) == f"Beton('{tmp_path}/train.beton', samples=1438, classes=10)"
    kd.train_teacher(str(tmp_path), model="resnet8", steps=4)
    store = kd.build_logits(tmp_path, teacher="resnet8", views=1)
    assert store.report is not None
    assert store.report.teacher_forwards == 2 * 1438
    assert "views=1" in repr(store)
    assert kd.build_logits(tmp_path, teacher=["resnet8"], views=1).report.teacher_forwards == 0
    subset = kd.select(tmp_path, keep=0.5, export=str(tmp_path / "scores.csv"))
    assert subset.report is not None
    assert len(subset) == subset.report.kept == 719
    assert (tmp_path / "scores.csv").exists()
    assert kd.Subset.load(subset.report.path) == subset
    result = kd.train(tmp_path, model="resnet8", epochs=1, seeds=2)
    assert [run.teacher_forwards for run in result.runs] == [0, 0]
    assert result.top1 == sum(run.top1 for run in result.runs) / 2
    assert result.top1_std is not None
    assert kd.evaluate(tmp_path).top1 == result.runs[-1].top1
    assert kd.verify(tmp_path).images == 1438 + 359
    for kind, path in {
        facts.BetonFacts: data.train.path,
        facts.TeacherFacts: tmp_path / "teachers" / "resnet8.safetensors",
        facts.StoreFacts: store.path,
        facts.SubsetFacts: subset.report.path,
        facts.RunFacts: result.path,
    }.items():
        shown = kd.show(path)
        assert f"{shown.kind.capitalize()}Facts" == kind.__name__
        assert kind.__required_keys__ <= set(shown.facts) <= set(get_type_hints(kind))
    for run in (result.path, tmp_path / "runs" / "teacher-resnet8"):
        about = kd.show(run).facts
        assert set(about["config"]) <= set(get_type_hints(facts.RunConfig))
        assert set(about["environment"]) == set(get_type_hints(facts.Environment))
    kd.verify(tmp_path, teacher="resnet8")
    assert torch.equal(torch.get_rng_state(), generator), "the caller's random numbers"
    with pytest.raises(ConfigError, match=f"not LogitStore. Pass its path, {store.path}$"):
        kd.train(tmp_path, store=store)
    with pytest.raises(ConfigError, match=f"not Subset. Pass its path, {subset.report.path}$"):
        kd.train(tmp_path, subset=subset)
    with pytest.raises(ConfigError, match=f"not TrainResult. Pass its path, {result.path}$"):
        kd.evaluate(tmp_path, result)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--keep 0.7 leaves", "keep=0.7 leaves"),
        ("leave --min-per-class out", "leave min_per_class out"),
        ("given with --no-kd", "given with kd=False"),
        ("--device is cuda, but", "device=cuda, but"),
        ("--model is missing, expected", "model is missing, expected"),
        ("Run kdcache train --epochs 3; or --steps 3", "Run kdcache train --epochs 3; or steps=3"),
        ("pip install --force-reinstall torch", "pip install --force-reinstall torch"),
        ("a--b", "a--b"),
    ],
)
def test_a_text_in_the_words_of_python(text, expected):
    assert in_python(text) == expected
    assert str(KDCacheError(text)) == expected
    assert shell_line(KDCacheError(text)) == text


def test_the_flags_are_the_boolean_options():
    booleans = {
        name
        for options, _ in COMMANDS.values()
        for name, hint in get_type_hints(options).items()
        if hint is bool
    }
    assert booleans == FLAGS


def test_numbers_of_numpy_are_numbers(tmp_path):
    with pytest.raises(DatasetError, match=r"train\.beton is missing"):
        kd.train(tmp_path, epochs=np.int64(3), lr=np.float32(0.5), seed=np.uint8(2))
    with pytest.raises(ConfigError, match=r"^epochs=1\.5: expected int \| None, not float$"):
        kd.train(tmp_path, epochs=np.float32(1.5))


def test_a_value_of_another_type_is_shown_with_its_type_in_one_short_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^lr=0\.1: expected float \| None, not str$"):
        kd.train(tmp_path, lr="0.1")
    subset = kd.Subset(np.arange(1000))
    with pytest.raises(ConfigError, match=r"not Subset\. Save it, and pass the path") as raised:
        kd.train(tmp_path, subset=subset)
    assert raised.value.value is subset
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    path = f"{tmp_path}/two  spaces/{'x' * 300}"
    with pytest.raises(ConfigError, match=re.escape(f"keep={path}: expected float, not str")):
        kd.select(tmp_path, keep=path)


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        ("train", {"subset": kd.Subset(np.arange(9))}, "Save it, and pass the path of its file$"),
        ("build_logits", {"policy": kd.Policy.parse("clean")}, "Pass its text, clean$"),
        ("select", {"method": min}, "Pass it as module:name$"),
    ],
)
def test_an_object_in_the_place_of_its_path_or_name_is_refused_with_a_way(
    tmp_path, function, given, message
):
    with pytest.raises(ConfigError, match=message):
        getattr(kd, function)(tmp_path, **given)


def test_a_sequence_may_be_a_list_and_a_single_path_stands_for_one(tmp_path):
    with pytest.raises(DatasetError, match="is missing"):
        kd.train(tmp_path, schedule="step", milestones=[0.25, 0.5])
    with pytest.raises(ConfigError, match=r"milestones=0\.5, 0\.25: expected rising"):
        kd.train(tmp_path, schedule="step", milestones=[0.5, 0.25])
    for parts in (tmp_path / "a.zarr", str(tmp_path / "a.zarr")):
        with pytest.raises(FileNotFoundError, match=r"a\.zarr does not exist"):
            kd.merge(parts, out=tmp_path / "b.zarr")


@pytest.mark.parametrize(
    "use",
    [
        kd.open_beton,
        kd.LogitStore.open,
        kd.Subset.load,
        lambda path: kd.merge(path, out=path / "out"),
        lambda path: kd.verify(path.parent, store=path),
        lambda path: kd.evaluate(path.parent, path),
        lambda path: kd.train(path.parent, store=path),
    ],
    ids=["open_beton", "LogitStore", "Subset", "merge", "verify", "evaluate", "train"],
)
def test_a_missing_file_is_an_error_of_the_library(tmp_path, use):
    with pytest.raises(kd.errors.KDCacheError, match=re.escape(str(tmp_path))):
        use(tmp_path / "gone")


def test_paths_of_results_stay_valid_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = kd.pack("digits", workspace="ws")
    shown = kd.show("ws/train.beton")
    assert (data.train.path, shown.path) == (tmp_path / "ws" / "train.beton",) * 2
    monkeypatch.chdir("/")
    with kd.DistillLoader(data.train, None, [1, 2]) as loader:
        assert len(list(loader)) == 1


def test_repr_of_an_error_holds_its_message():
    error = ConfigError(parameter="keep", value=1.5, rule="a number in (0, 1]")
    assert repr(error) == "ConfigError('keep=1.5: expected a number in (0, 1]')"
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert (str(copied), copied.in_shell()) == (str(error), error.in_shell())
    assert vars(copied) == vars(error)

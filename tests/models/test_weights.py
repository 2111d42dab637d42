"""Weights on disk: what comes back, what is refused, and that nothing is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.commands import parse
from kdcache.errors import WeightsError
from kdcache.models.registry import make_model
from kdcache.models.weights import fill_model, load_weights, save_weights
from kdcache.models.weights_files import weights_problem


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 5))


def test_tensors_and_description_come_back_as_they_were(tmp_path):
    tensors = {
        "float32": torch.randn(3, 4),
        "float16": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "transposed": torch.randn(3, 4).T,
        "with a gradient": torch.randn(2, requires_grad=True),
    }
    about = {"arch": "resnet8", "classes": 4, "nested": {"lr": 0.1}, "none": None, "ü": ["ß"]}
    save_weights(tmp_path / "folder" / "w.safetensors", tensors, about)
    found, found_about = load_weights(tmp_path / "folder" / "w.safetensors")
    assert found_about == about
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0)


def test_a_file_of_another_program_has_an_empty_description(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    save_file({"a": torch.ones(2)}, tmp_path / "v.safetensors")
    assert load_weights(tmp_path / "w.safetensors")[1] == {}
    assert load_weights(tmp_path / "v.safetensors")[1] == {}


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_whom_the_umask_lets_read_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("size", [0, 5, 20, -1])
def test_a_truncated_file_is_refused(tmp_path, size):
    path = tmp_path / "cut.safetensors"
    save_weights(path, {"a": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"cut\.safetensors is not readable as safetensors"):
        load_weights(path)


@pytest.mark.parametrize("write", [torch.save, None], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", ["teacher.pt", "teacher.safetensors"])
def test_a_pickle_is_refused_and_never_executed(tmp_path, name, write):
    bomb = Bomb(tmp_path / "executed")
    if write:
        write(bomb, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(WeightsError, match=rf"{name} .*safetensors\.torch\.save_file"):
        load_weights(tmp_path / name)
    assert not bomb.trace.exists()


def test_the_bomb_of_these_tests_goes_off_when_it_is_unpickled(tmp_path):
    bomb = Bomb(tmp_path / "executed")
    pickle.loads(pickle.dumps(bomb))  # noqa: S301  (written on the line itself)
    assert bomb.trace.exists()


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)}, {"epoch": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_weights(path, {"a": torch.zeros(2)}, {"epoch": object()})
    assert load_weights(path)[1] == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_model_is_filled_with_every_tensor():
    source, target = small_model(), small_model()
    source[1].running_mean += 3
    source[1].num_batches_tracked += 7
    fill_model(target, source.state_dict(), path=Path("w"))
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, rtol=0, atol=0)


def test_tensors_that_do_not_fit_are_named_with_both_shapes():
    tensors = small_model().state_dict()
    tensors["3.weight"] = torch.zeros(9, 8)
    tensors["3.other"] = torch.zeros(2)
    del tensors["0.bias"]
    with pytest.raises(WeightsError) as error:
        fill_model(small_model(), tensors, path=Path("folder/w.safetensors"))
    message = str(error.value)
    assert "folder/w.safetensors does not fit the model: 9 tensors, expected 9; " in message
    assert "1 missing (0.bias (4,)); " in message
    assert "1 unexpected (3.other (2,)); " in message
    assert "1 of another shape (3.weight is (9, 8), expected (5, 8))" in message
    assert "with arch" in message


def test_no_more_than_three_of_a_kind_are_named():
    with pytest.raises(WeightsError, match=r"0 tensors, expected 9; 9 missing") as error:
        fill_model(small_model(), {}, path=Path("w"))
    assert "(0.weight (4, 3, 3, 3), 0.bias (4,), 1.weight (4,), ...)" in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_names_of_a_wrapped_model_are_recognised(prefix):
    tensors = {prefix + name: value for name, value in small_model().state_dict().items()}
    with pytest.raises(WeightsError, match=rf"names begin with '{prefix}'.* wrapper") as error:
        fill_model(small_model(), tensors, path=Path("w"))
    # The remedy is an expression that does it.
    unwrapped = eval(str(error.value).partition("Save it again with ")[2], {"state_dict": tensors})  # noqa: S307
    fill_model(small_model(), unwrapped, path=Path("w"))


def test_a_prefix_that_hides_nothing_is_none():
    tensors = {f"layer.{name}": value for name, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(WeightsError, match=r"9 missing .* 2 unexpected \(layer\.weight"):
        fill_model(small_model(), tensors, path=Path("w"))


def test_a_model_that_does_not_fit_is_left_as_it_was():
    model = small_model()
    before = model[0].weight.clone()
    tensors = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    del tensors["3.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(3\.bias \(5,\)\)"):
        fill_model(model, tensors, path=Path("w"))
    assert torch.equal(model[0].weight, before)


def test_a_file_that_kdcache_wrote_is_read_only_if_no_byte_has_changed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, {"weight": torch.arange(6.0)}, {"arch": "resnet8", "top1": 50.0})
    assert weights_problem(path) is None
    assert load_weights(path)[1] == {"arch": "resnet8", "top1": 50.0}
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert weights_problem(path) is not None, content[max(0, place - 20) : place + 20]
    changed[-1] ^= 3
    with pytest.raises(WeightsError, match="differs from its seal: it was damaged or edited"):
        load_weights(path)


def test_weights_of_another_program_have_no_seal_and_are_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})
    assert weights_problem(path) is None
    assert load_weights(path)[1] == {}


def test_a_teacher_of_an_earlier_version_is_refused_with_the_command_that_trains_it(tmp_path):
    path = tmp_path / "w" / "teachers" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    about = {"arch": "resnet8", "epochs": 3, "steps": None, "seed": 4, "optimizer": "adamw"}
    save_file({"weight": torch.ones(3)}, path, metadata={"kdcache": json.dumps(about)})
    with pytest.raises(WeightsError, match="has no seal: an earlier version of kdcache") as error:
        load_weights(path)
    options = parse(shlex.split(error.value.in_shell().partition("Run: kdcache ")[2])).options
    assert (options.model, options.epochs, options.seed) == ("resnet8", 3, 4)
    assert (options.optimizer, options.name, options.overwrite) == ("adamw", "mine", True)
    assert options.workspace == tmp_path / "w"


def without_counters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what torch before 0.4.1 saved."""
    return {
        name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")
    }


def test_a_file_from_before_batch_norms_counted_loads():
    source, target = small_model(), small_model()
    fill_model(target, without_counters(source.state_dict()), path=Path("w"))
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_batch_norm_that_is_missing_as_a_whole_is_refused():
    tensors = {
        name: value
        for name, value in small_model().state_dict().items()
        if not name.startswith("1.")
    }
    with pytest.raises(WeightsError, match=r"5 missing \(1\.weight"):
        fill_model(small_model(), tensors, path=Path("w"))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"3.weight": (9, 8), "3.bias": (9,)}, "has 9 classes, expected 5 as in the packed data"),
        ({"0.weight": (4, 1, 3, 3)}, "takes images of 1 channels, expected 3"),
        ({"0.weight": (4, 3, 5, 5)}, "Name the model that it was trained as with arch"),
        ({"3.weight": (9, 8), "3.bias": (7,)}, "Name the model"),
    ],
)
def test_shapes_that_have_one_cause_name_it(changes, cause):
    tensors = small_model().state_dict()
    tensors |= {name: torch.zeros(shape) for name, shape in changes.items()}
    with pytest.raises(WeightsError, match=cause):
        fill_model(small_model(), tensors, path=Path("w"))


def test_positions_of_another_image_size_name_the_option():
    name = "vit_b_32"
    with torch.device("meta"):
        model = make_model(name, num_classes=5, image_size=64)
        tensors = make_model(name, num_classes=5, image_size=96).state_dict()
    with pytest.raises(WeightsError, match=r"pos_embedding is .*size .* with teacher_size"):
        fill_model(model, tensors, path=Path("w"))

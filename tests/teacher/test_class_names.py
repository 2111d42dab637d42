"""Classes of the data against those of published weights: the same, others, or not comparable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
from torch import nn

from kdcache.errors import TeacherError
from kdcache.teacher.class_names import imagenet_names, require_same_classes, require_same_names
from kdcache.teacher.published import PublishedWeights
from kdcache.teacher.timm_weights import find_timm
from kdcache.teacher.torchvision_weights import find_torchvision

TORCHVISION, TIMM = find_torchvision("resnet18"), find_timm("timm:resnet18")
IDS = [names[1] for names in imagenet_names()]
WORDS = [names[0] for names in TORCHVISION.class_names]


@pytest.fixture
def _no_timm(monkeypatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    imagenet_names.cache_clear()
    yield
    imagenet_names.cache_clear()


def published(names: list[str] | None) -> PublishedWeights:
    return PublishedWeights(
        arch="theirs",
        classes=4,
        class_names=names and [(name,) for name in names],
        is_imagenet=False,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        center_crop_ratio=0.875,
        clean_filter="bilinear",
        image_size=224,
        top1=None,
        load=lambda _: nn.Identity(),
    )


def swapped(names: list[str], one: int, other: int) -> list[str]:
    changed = list(names)
    changed[one], changed[other] = names[other], names[one]
    return changed


def test_timms_list_of_imagenet_is_torchvisions_in_the_same_order():
    assert sorted(IDS) == IDS
    differ = [
        word
        for word, (_, _, *theirs) in zip(WORDS, imagenet_names(), strict=True)
        if word not in [name.strip() for name in theirs]
    ]
    assert differ == ["crane bird", "maillot tank suit"]  # torchvision tells two pairs apart


@pytest.mark.parametrize("teacher", [TORCHVISION, TIMM], ids=["torchvision", "timm"])
@pytest.mark.parametrize(
    "names",
    [
        IDS,
        WORDS,
        [", ".join(names[2:]) for names in imagenet_names()],
        [words.upper().replace(" ", "_") for words in WORDS],
    ],
    ids=["WordNet ids", "words", "all words of a class", "another spelling"],
)
def test_imagenet_is_recognised_by_its_ids_and_by_its_words(teacher, names, caplog):
    with caplog.at_level(logging.INFO):
        assert require_same_classes(names, teacher)
    assert not caplog.text


@pytest.mark.parametrize("teacher", [TORCHVISION, TIMM], ids=["torchvision", "timm"])
@pytest.mark.parametrize("names", [IDS, WORDS], ids=["ids", "words"])
def test_two_classes_that_changed_places_are_named_by_the_first(teacher, names):
    with pytest.raises(TeacherError, match=rf"class 7 of the packed data is '{names[993]}'"):
        require_same_classes(swapped(names, 7, 993), teacher)


@pytest.mark.parametrize("teacher", [TORCHVISION, TIMM], ids=["torchvision", "timm"])
def test_an_id_that_is_none_of_imagenets_is_named(teacher):
    other = [*IDS[:500], "n99999999", *IDS[501:]]
    with pytest.raises(TeacherError, match="class 500 of the packed data is 'n99999999'"):
        require_same_classes(other, teacher)


@pytest.mark.usefixtures("_no_timm")
def test_without_timm_the_order_of_the_ids_alone_is_checked(caplog):
    with caplog.at_level(logging.INFO):
        assert require_same_classes(IDS, TORCHVISION)
    assert caplog.text.count("WordNet ids in sorted order") == 1
    assert "kdcache[timm]" in caplog.text
    with pytest.raises(TeacherError, match=f"class 7 of the packed data is '{IDS[993]}'"):
        require_same_classes(swapped(IDS, 7, 993), TORCHVISION)


@pytest.mark.usefixtures("_no_timm")
def test_without_timm_words_are_compared_all_the_same():
    assert require_same_classes(WORDS, TORCHVISION)
    with pytest.raises(TeacherError, match="class 2 of the packed data is 'hen'"):
        require_same_classes(swapped(WORDS, 2, 8), TORCHVISION)


@pytest.mark.parametrize(
    ("names", "theirs", "why"),
    [
        (list("0123"), ["cat", "dog", "cow", "pig"], "numbers such as '0' say nothing"),
        (list("0123"), list("0123"), "numbers such as '0' say nothing"),
        (["ant", "bee", "fly", "eel"], ["cat", "dog", "cow", "pig"], "knows 0 of the data's 4"),
        (["cat", "x", "y", "z"], ["cat", "dog", "cow", "pig"], "knows 1 of the data's 4 names"),
        (["cat", "dog", "cow", "pig"], None, "its classes have no names"),
    ],
    ids=["numbers", "equal numbers", "other names", "a chance match", "nameless"],
)
def test_names_that_cannot_be_compared_are_said_in_one_line(names, theirs, why, caplog):
    with caplog.at_level(logging.INFO):
        assert not require_same_classes(names, published(theirs))
    assert len(caplog.records) == 1
    assert why in caplog.text
    assert "by number only" in caplog.text


def test_half_of_the_names_make_the_two_comparable():
    with pytest.raises(TeacherError, match=r"class 2 of the packed data is 'x', expected 'cow'"):
        require_same_classes(["cat", "dog", "x", "y"], published(["cat", "dog", "cow", "pig"]))


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        (None, ["cat", "dog"], "it states no class names"),
        (["0", "1"], ["0", "1"], "by numbers"),
        (["0", "1"], ["cat", "dog"], "calls class 0 '0', and the data 'cat'"),
        (["cat", "dog"], ["7", "8"], "calls class 0 'cat', and the data '7'"),
    ],
    ids=str,
)
def test_a_file_whose_names_say_nothing_is_warned_of(theirs, ours, why, caplog):
    assert not require_same_names("t.safetensors", theirs, ours)
    assert why in caplog.text
    assert "Check their order" in caplog.text


def test_a_file_with_the_same_names_is_silent(caplog):
    assert require_same_names("t.safetensors", ["cat", "dog"], ["cat", "dog"])
    assert not caplog.text


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            ["cat", "dog", "cow"],
            ["cat", "cow", "dog"],
            "class 1 .* 'cow', but 'dog'.*order differs",
        ),
        (["cat", "dog"], ["cat", "wolf"], "class 1 .* 'wolf', but 'dog'.*the classes differ"),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], "class 2 .* '2', but '10'.*order differs"),
    ],
    ids=["order", "renamed", "numbers as text"],
)
def test_a_file_with_other_names_is_refused(theirs, ours, message):
    with pytest.raises(TeacherError, match=message):
        require_same_names("t.safetensors", theirs, ours)

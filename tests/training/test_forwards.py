"""Images that pass through a foreign model are counted, whoever sends them."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from kdcache.compute.normalize import Normalise
from kdcache.models.registry import make_model
from kdcache.teacher.forward import TeacherForward
from kdcache.training.forwards import ForeignForwardCounter
from tests.teachers import projection

IMAGES = torch.zeros(5, 3, 32, 32)


class TakesNames(nn.Module):
    """A model that is called by keyword."""

    def forward(self, scale: float, *, images: torch.Tensor) -> torch.Tensor:
        return scale * images


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"{len(self.inner(images))} images")


@pytest.fixture
def student() -> nn.Module:
    return make_model("resnet8", num_classes=4, image_size=32)


def test_the_students_own_forward_passes_do_not_count(student):
    normalise = Normalise([0.5] * 3, [0.25] * 3)
    with ForeignForwardCounter(student) as counter:
        student(normalise(IMAGES))
        student.fc(torch.zeros(9, 64))
    assert counter.images == 0


def test_images_are_counted_not_calls(student):
    teacher = projection()
    with ForeignForwardCounter(student) as counter:
        teacher(IMAGES)
        teacher(IMAGES[:3])
        student(IMAGES)
    assert counter.images == 8


def test_what_a_teacher_is_shown_through_does_not_count_twice(student):
    teacher = TeacherForward(
        projection(),
        num_classes=4,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        device=torch.device("cpu"),
        precision="fp32",
    )
    with ForeignForwardCounter(student) as counter:
        teacher(IMAGES.byte())
    assert counter.images == 5


def test_of_nested_modules_the_outermost_counts_once(student):
    teacher = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), nn.ReLU())
    with ForeignForwardCounter(student) as counter:
        teacher(IMAGES)
    assert counter.images == 5


def test_a_teacher_inside_a_wrapper_of_the_student_counts(student):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = student, projection()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.student(images) - self.teacher(images)

    with ForeignForwardCounter(student) as counter:
        Both()(IMAGES)
    assert counter.images == 5


def test_a_teacher_called_from_within_the_student_counts(student):
    teacher = projection()
    student.fc.register_forward_hook(lambda *_: teacher(IMAGES))
    with ForeignForwardCounter(student) as counter:
        student(IMAGES)
    assert counter.images == 5


def test_images_given_by_name_are_counted(student):
    with ForeignForwardCounter(student) as counter:
        TakesNames()(2.0, images=IMAGES)
    assert counter.images == 5


def test_a_call_without_a_batch_counts_as_one(student):
    with ForeignForwardCounter(student) as counter:
        nn.Identity()("no tensor")
        nn.Identity()(torch.tensor(3.0))
    assert counter.images == 2


def test_a_forward_pass_that_raises_is_counted_and_does_not_disturb_the_next(student):
    teacher = projection()
    with ForeignForwardCounter(student) as counter:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="5 images"):
                Raises()(IMAGES)
        teacher(IMAGES[:3])
    assert counter.images == 13


def test_a_teacher_in_another_thread_counts(student):
    teacher = projection()
    with ForeignForwardCounter(student) as counter:
        thread = threading.Thread(target=teacher, args=(IMAGES,))
        thread.start()
        thread.join()
    assert counter.images == 5


def test_counting_ends_with_the_block_even_when_it_raises(student):
    teacher = projection()
    counter = ForeignForwardCounter(student)
    with pytest.raises(KeyError), counter:
        raise KeyError
    teacher(IMAGES)
    with ForeignForwardCounter(student):
        pass
    teacher(IMAGES)
    assert counter.images == 0

"""Batches that do not fit into memory: what is said, and that only this is caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdcache.errors import TeacherError
from kdcache.teacher.out_of_memory import run_forward


def needing_more_than(fits: int):
    """Return a function that answers up to so many images, and asks the allocator for the rest."""
    asked = []

    def answer(images: Tensor) -> Tensor:
        asked.append(len(images))
        torch.empty(max(len(images) - fits, 0) << 50, dtype=torch.uint8)
        return images

    return answer, asked


@pytest.mark.parametrize(("fits", "tried"), [(64, [64]), (40, [64, 32]), (9, [64, 32, 16, 8])])
def test_halves_are_tried_until_one_fits(fits, tried):
    answer, asked = needing_more_than(fits)
    images = torch.zeros(64, 1)
    if fits == 64:
        assert run_forward(answer, images) is images
    else:
        with pytest.raises(TeacherError, match=r"batch_size=64: .*can't allocate") as error:
            run_forward(answer, images)
        assert f"Use batch_size={tried[-1]}, which does" in str(error.value)
        assert "\n" not in str(error.value)
        assert isinstance(error.value.__cause__, RuntimeError)
    assert asked == tried


def test_where_not_one_image_fits_that_is_said():
    answer, asked = needing_more_than(0)
    with pytest.raises(TeacherError, match=r"batch_size=3: .*Not one image does.*teacher"):
        run_forward(answer, torch.zeros(3, 1))
    assert asked == [3, 1]


def test_what_is_no_lack_of_memory_passes_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_forward(
            lambda images: images.T @ torch.zeros(2, 3), torch.zeros(4, 2)
        )  # half of it would do


def test_another_error_of_a_smaller_batch_passes_through():
    def answer(images: Tensor) -> Tensor:
        if len(images) < 8:
            raise RuntimeError("the batch is odd")
        return torch.empty(1 << 50, dtype=torch.uint8)

    with pytest.raises(RuntimeError, match="the batch is odd"):
        run_forward(answer, torch.zeros(8, 1))


@pytest.mark.gpu
def test_a_gpu_without_memory_is_said_with_a_batch_size_that_fits():
    def answer(images: Tensor) -> Tensor:
        return torch.empty(max(len(images) - 20, 0) << 38, dtype=torch.uint8, device="cuda")

    with pytest.raises(TeacherError, match=r"batch_size=64: .*Use batch_size=16"):
        run_forward(answer, torch.zeros(64, 1, device="cuda"))

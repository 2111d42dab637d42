"""Pixels to the device and answers back."""

from __future__ import annotations

import pytest
import torch

from kdcache.teacher.pinned_copies import MAX_BATCHES_IN_FLIGHT, ToDevice, ToHost

CPU = torch.device("cpu")


def test_on_a_cpu_pixels_stay_where_they_are():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert ToDevice(CPU)(images) is images


def test_on_a_cpu_answers_are_copied_at_once():
    to_host = ToHost(CPU)
    target, answers = to_host.empty(3, 2), torch.randn(3, 2)
    expected = answers.clone()
    to_host(answers, target)
    answers.zero_()
    to_host.wait_function()()
    assert torch.equal(target, expected)
    assert (target.dtype, target.device) == (torch.float32, CPU)


@pytest.mark.gpu
def test_what_crosses_is_whole_while_host_and_device_go_on():
    """The host's buffer and the device's answer are filled again at once, as in the pass."""
    device = torch.device("cuda", 0)
    to_device, to_host = ToDevice(device), ToHost(device)
    # Three views side by side, as the reader's buffer has them.
    buffer = torch.empty(16, 3, 64, 64, 3, dtype=torch.uint8)
    answer = torch.empty(16, 10, device=device)
    targets, waits = [], []
    for number in range(20 * MAX_BATCHES_IN_FLIGHT):
        buffer[:, 1] = number
        images = to_device(buffer[:, 1].permute(0, 3, 1, 2))
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.cuda._sleep(1_000_000)  # noqa: SLF001  (the device lags behind)
        answer.copy_(images.flatten(1)[:, :10])
        targets.append(to_host.empty(16, 10))
        to_host(answer, targets[-1])
        waits.append(to_host.wait_function())
        answer.zero_()
        buffer.zero_()
    for number, (target, wait) in enumerate(zip(targets, waits, strict=True)):
        wait()
        assert target.is_pinned()
        assert (target == number).all()

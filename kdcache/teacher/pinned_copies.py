"""Pixels on their way to the teacher's device and answers on their way back, beside its work.

On CUDA both cross through pinned memory on streams of their own, so that the device computes
meanwhile, and the host waits only when `MAX_BATCHES_IN_FLIGHT` batches are ahead of it. On a CPU
nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

MAX_BATCHES_IN_FLIGHT = 2
"""Batches that the host may prepare before the device has done with them."""


class ToDevice:
    """Brings batches of pixels to a device.

    Args:
        device: of the teacher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Memory of a batch is kept until the kernels that read it are done.
        self._in_use: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._last: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return a batch on the device; kernels that are started from now on wait for it.

        Args:
            images: (B, 3, S, S) uint8 on the host; its memory may change once this returns.
        """
        if self._stream is None:
            return images
        present = torch.cuda.current_stream(self._device)
        if self._last is not None:
            self._in_use.append((present.record_event(), self._last))
        while len(self._in_use) > MAX_BATCHES_IN_FLIGHT:
            done, _ = self._in_use.popleft()
            done.synchronize()
        # Dense, where the reader's buffer holds several views of an image side by side.
        pinned = torch.empty(
            images.shape, dtype=images.dtype, pin_memory=True, memory_format=torch.channels_last
        ).copy_(images)
        with torch.cuda.stream(self._stream):
            # torch keeps a pinned block until its copy is done.
            self._last = pinned.to(self._device, non_blocking=True)
        present.wait_stream(self._stream)
        return self._last


class ToHost:
    """Brings answers back from a device.

    Args:
        device: of the teacher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_flight: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def empty(self, rows: int, width: int) -> Tensor:
        """Return memory for answers, (rows, width) float32 on the host, pinned for CUDA."""
        return torch.empty(rows, width, pin_memory=self._stream is not None)

    def __call__(self, answers: Tensor, target: Tensor) -> None:
        """Copy answers to the host; they are there when `wait_function()` says so.

        Args:
            answers: on the device; their memory may change once this returns, as a recorded
                graph's does.
            target: as large, from `empty`.
        """
        if self._stream is None:
            target.copy_(answers)
            return
        held = answers.clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(held, non_blocking=True)
            self._in_flight.append((self._stream.record_event(), held))
        while self._in_flight and self._in_flight[0][0].query():
            self._in_flight.popleft()

    def wait_function(self) -> Callable[[], None]:
        """Return a function that waits, in any thread, for everything that was copied so far."""
        if self._stream is None:
            return _return_at_once
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event.synchronize


def _return_at_once() -> None:
    """Wait for nothing."""

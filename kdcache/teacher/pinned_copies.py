"""Copy pixels to the teacher's device and outputs back to the host, while the device computes.

On CUDA both copies use pinned memory and their own streams, so that the device computes
meanwhile, and the host waits only when `MAX_BATCHES_IN_FLIGHT` batches are ahead of it. On a CPU
nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

MAX_BATCHES_IN_FLIGHT = 2
"""Maximum number of batches that the host prepares ahead of the device."""


class ToDevice:
    """Copy batches of pixels to a device.

    Args:
        device: device of the teacher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Keep the memory of a batch until the kernels that read it are done.
        self._in_use: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._last: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return a batch on the device; kernels that are launched later wait for it.

        Args:
            images: (B, 3, S, S) uint8 on the host; the caller may overwrite it after the call.
        """
        if self._stream is None:
            return images
        present = torch.cuda.current_stream(self._device)
        if self._last is not None:
            self._in_use.append((present.record_event(), self._last))
        while len(self._in_use) > MAX_BATCHES_IN_FLIGHT:
            done, _ = self._in_use.popleft()
            done.synchronize()
        # The copy is dense; the reader's buffer may interleave several views of an image.
        pinned = torch.empty(
            images.shape, dtype=images.dtype, pin_memory=True, memory_format=torch.channels_last
        ).copy_(images)
        with torch.cuda.stream(self._stream):
            # torch keeps the pinned block until the copy is done.
            self._last = pinned.to(self._device, non_blocking=True)
        present.wait_stream(self._stream)
        return self._last


class ToHost:
    """Copy outputs from a device to the host.

    Args:
        device: device of the teacher.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_flight: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def empty(self, rows: int, width: int) -> Tensor:
        """Return an empty (rows, width) float32 tensor on the host, pinned for CUDA."""
        return torch.empty(rows, width, pin_memory=self._stream is not None)

    def __call__(self, outputs: Tensor, target: Tensor) -> None:
        """Start copying outputs to the host; `wait_function()` waits until they have arrived.

        Args:
            outputs: (rows, width) on the device; the caller may overwrite them after the call, as
                a CUDA graph does.
            target: (rows, width) from `empty`.
        """
        if self._stream is None:
            target.copy_(outputs)
            return
        held = outputs.clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(held, non_blocking=True)
            self._in_flight.append((self._stream.record_event(), held))
        while self._in_flight and self._in_flight[0][0].query():
            self._in_flight.popleft()

    def wait_function(self) -> Callable[[], None]:
        """Return a function that waits, in any thread, for all copies started so far."""
        if self._stream is None:
            return _return_at_once
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event.synchronize


def _return_at_once() -> None:
    """Do nothing: on a CPU the copies are done already."""

"""Capture a forward pass as a CUDA graph and replay it.

One launch replaces about a hundred, which take most of the time of a small model. The model is
captured, not compiled with torch.compile, because a replay runs the same kernels as the model. So
the logits are bit-equal in a build, in `verify --teacher` and in a live teacher, and the machine
needs no compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2
"""Forwards before the capture, in which libraries choose kernels and allocate memory."""


class CapturedForward:
    """Replay the kernels of one forward pass, for batches of up to B images.

    A smaller batch is padded with images of earlier batches. This is safe because the output for an
    image depends on that image only.

    Args:
        run: maps images to outputs, all on one CUDA device. Its allocations and its kernels must
            not depend on the pixel values.
        images: (B, 3, S, S) example of the largest batch.

    Raises:
        RuntimeError: if `run` cannot be captured, for example because it waits for its results.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], images: Tensor) -> None:
        if images.device.type != "cuda":
            raise RuntimeError(f"images are on {images.device}, expected a CUDA device")
        self._images = images.clone()
        side = torch.cuda.Stream(images.device)
        present = torch.cuda.current_stream(images.device)
        side.wait_stream(present)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run(self._images)
        present.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):
            self._outputs = run(self._images)

    def fits(self, images: Tensor) -> bool:
        """Return whether the graph can run this batch."""
        return len(images) <= len(self._images) and images.shape[1:] == self._images.shape[1:]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs for a batch that fits; the next call overwrites them."""
        self._images[: len(images)].copy_(images, non_blocking=True)
        self._graph.replay()
        return self._outputs[: len(images)]

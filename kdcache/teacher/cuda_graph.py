"""A forward pass recorded once and replayed: a CUDA graph.

One launch takes the place of some hundred, which is most of the time of a small model. Recorded and
not compiled (torch.compile), because a replay runs the very kernels that the model runs without it:
the logits keep their bits, whether they come from the pass, from `verify --teacher` or from a live
teacher, and nothing needs a compiler on the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2
"""Forwards before the recording, in which libraries choose their kernels and their memory."""


class CapturedForward:
    """The kernels of one forward, for batches of one size and smaller ones.

    Of a smaller batch the answers are computed beside those to images of earlier batches: an answer
    depends on its image alone.

    Args:
        run: maps images to answers, all on a CUDA device; what it allocates and computes must not
            depend on the images' values.
        images: (B, 3, S, S) an example of the largest batch.

    Raises:
        RuntimeError: if it cannot be recorded, as where it waits for its own results.
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
            self._answers = run(self._images)

    def fits(self, images: Tensor) -> bool:
        """Return whether it answers such a batch."""
        return len(images) <= len(self._images) and images.shape[1:] == self._images.shape[1:]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the answers to a batch that fits; the next call fills their memory again."""
        self._images[: len(images)].copy_(images, non_blocking=True)
        self._graph.replay()
        return self._answers[: len(images)]

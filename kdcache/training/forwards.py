"""Count the images that pass through any model other than the student."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from kdcache.compute.normalize import Normalise


class ForeignForwardCounter:
    """Counts, while open, the images that pass through modules outside `own`.

    torch calls the hooks for every forward pass in this process. Only the outermost call of a model
    counts, with the length of its first tensor argument. `Normalise` does not count as a model.
    Code compiled by torch.compile calls no hooks; only the student is compiled here.

    Attributes:
        images: the number of images so far.
    """

    def __init__(self, *own: nn.Module) -> None:
        self.images = 0
        self._own = {id(module) for root in own for module in root.modules()}
        self._depth = 0

    def __enter__(self) -> Self:
        """Start counting."""
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002  (torch's signature)
        if torch.compiler.is_compiling():
            return
        if not self._is_ignored(module):
            self._depth += 1

    def _leave_module(self, module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
        if torch.compiler.is_compiling() or self._is_ignored(module):
            return
        self._depth -= 1
        if self._depth == 0:
            # (keyword inputs, output), but only the output if the forward pass raised.
            named = rest[0].values() if len(rest) > 1 else ()
            tensors = (item for item in (*inputs, *named) if isinstance(item, Tensor))
            self.images += next((len(item) for item in tensors if item.ndim), 1)

    def _is_ignored(self, module: nn.Module) -> bool:
        return id(module) in self._own or isinstance(module, Normalise)

"""Counting the images that pass through any model but the student: measured, not assumed."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class ForeignForwardCounter:
    """While open, counts images through every module that does not belong to `own`.

    torch calls the hooks for each forward pass in this process, whoever makes it. Of a model only
    the outermost call counts, with the length of its first tensor.

    Attributes:
        images: how many were seen so far.
    """

    def __init__(self, *own: nn.Module) -> None:
        self.images = 0
        self._own = {id(module) for root in own for module in root.modules()}
        self._depth = 0

    def __enter__(self) -> Self:
        """Start to count."""
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
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

    def _enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if id(module) in self._own:
            return
        if self._depth == 0:
            self.images += next((len(item) for item in inputs if isinstance(item, Tensor)), 1)
        self._depth += 1

    def _leave_module(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002  (torch's form)
        if id(module) not in self._own:
            self._depth -= 1

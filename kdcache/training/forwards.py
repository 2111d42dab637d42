"""Counting the images that pass through any model but the student: measured, not assumed."""

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
    """While open, counts images through every module that does not belong to `own`.

    torch calls the hooks for each forward pass in this process, whoever makes it. Of a model only
    the outermost call counts, with the length of its first tensor, given by place or by name. What
    pixels are normalised with is no model. Code that torch.compile traces has no such calls any
    more; the student alone is compiled here.

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

    def _enter_module(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002  (torch's form)
        if torch.compiler.is_compiling():
            return
        if not self._passes(module):
            self._depth += 1

    def _leave_module(self, module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
        if torch.compiler.is_compiling() or self._passes(module):
            return
        self._depth -= 1
        if self._depth == 0:
            # (named inputs, output), but the output alone where the forward pass raised.
            named = rest[0].values() if len(rest) > 1 else ()
            tensors = (item for item in (*inputs, *named) if isinstance(item, Tensor))
            self.images += next((len(item) for item in tensors if item.ndim), 1)

    def _passes(self, module: nn.Module) -> bool:
        return id(module) in self._own or isinstance(module, Normalise)

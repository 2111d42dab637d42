"""What a family of models brings: its names, and how to make one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import nn

from kdcache.options import Stem

Shape = tuple[int, ...]


class Family(ABC):
    """Models that one file or library makes. By default, all can be trained with one stem."""

    description: str
    """What to write, for messages that list all models."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names to list. A family may know more."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return True if the family has a model of this name."""

    def why_not_trainable(self, name: str) -> str | None:  # noqa: ARG002
        """Return why the model cannot be trained with logits alone, or None if it can."""
        return None

    def has_two_stems(self, name: str) -> bool:  # noqa: ARG002
        """Return True if the model can be made with a small or a standard stem."""
        return False

    def has_hidden_stem(self, name: str) -> bool:  # noqa: ARG002
        """Return True if the two stems of the model have the same tensors."""
        return False

    def stem_of_shapes(self, name: str, shapes: Mapping[str, Shape]) -> Stem | None:  # noqa: ARG002
        """Return the stem of a model with two stems from its tensors; None if both have the same.

        Args:
            name: a model with two stems.
            shapes: name -> shape of each tensor of a state dict.
        """
        return None

    @abstractmethod
    def make(
        self, name: str, *, num_classes: int, image_size: int, stem: Stem | None = None
    ) -> nn.Module:
        """Return a model with fresh weights, drawn from torch's generator.

        Args:
            name: a name that the family has.
            num_classes: C; the model maps (B, 3, S, S) to logits (B, C).
            image_size: S, height and width of its images.
            stem: the stem of a model with two stems; None for all other models.

        Raises:
            ConfigError: if it cannot be made for this size.
        """

"""Define `Provenance`: how a subset was chosen."""

from __future__ import annotations

from typing import TypedDict


class Provenance(TypedDict, total=False):
    """The options of `select` that chose a subset, and the inputs that it read.

    A key is missing if it does not apply. A subset file may hold further keys of its author.
    """

    method: str
    keep: float
    score: str | None
    """Name of the score; None for a file of scores."""
    balance: str
    seed: int
    of: int
    """Samples to choose from."""
    data_fingerprint: str
    teacher: str
    teacher_digest: str
    min_per_class: int
    start: float
    cut: float
    peak: float
    concentration: float
    method_code_digest: str
    """Hex sha256 of the file with the user's method."""
    parity: str
    scores: str
    """Name of the file of scores."""
    scores_digest: str
    averaged_with: list[str]
    """Digests of the other teachers."""
    score_code_digest: str
    """Hex sha256 of the file with the user's score."""
    score_computed_from: str

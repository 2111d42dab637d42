"""Which codec a store gets: the one that was asked for, or the smallest that keeps the gradient.

Decided once, from rows of the clean pass, before any row of an augmented view is written. Seven of
eight rows or more fit a basis; the others, which it has not seen, are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.rng import generator
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.dense import Dense
from kdcache.store.codecs.fidelity import Fidelity, measure_fidelity
from kdcache.store.codecs.int8 import Int8
from kdcache.store.codecs.kept_classes import DEFAULT_KEPT
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.registry import codec_class
from kdcache.store.codecs.request import AUTO, CodecRequest
from kdcache.store.codecs.topk import TopK

ACCEPTED_FOR = (1.0, 2.0, 4.0)
"""Temperatures at which `auto` asks for the gradient."""

MEASURED_AT = (*ACCEPTED_FOR, 20.0)

MOST_ROWS = 16_384
MOST_NUMBERS = 1 << 25
"""128 MiB of float32: fewer rows where there are many classes."""

JUDGED_ROWS = 512
LARGEST_JUDGED_SHARE = 8
"""One in as many rows is judged at most."""

_KEPT_TRIED = (10, 32, 64)
_COEFFICIENTS_TRIED = (16, 32, 64, 96, 128, 192, 256)


class Choice(NamedTuple):
    """A codec, and why it is this one."""

    codec: Codec
    table: list[dict[str, Any]]
    """A row for each codec that was measured, smallest first, JSON content: `codec` (its spelling),
    `row_bytes`, `fidelity` (a list of `Fidelity` as dicts), `accepted_for` (temperatures) and
    `chosen`."""


def choice_sample_ids(
    num_samples: int, num_classes: int, *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return the samples whose clean logits decide, (n,) sorted.

    At most 16,384, fewer where they would take more than 128 MiB.
    """
    count = _num_deciding(num_samples, num_classes)
    drawn = generator(seed, "codec-choice").choice(num_samples, count, replace=False)
    return np.sort(drawn).astype(np.int64)


def choose_codec(
    request: CodecRequest | str,
    logits_NC: npt.NDArray[np.float32],
    sample_ids: npt.NDArray[np.int64],
) -> Choice:
    """Return the codec that was asked for, measured; or the smallest that is accepted.

    `auto` accepts a codec whose gradient is within 10 degrees and 5 % in length of the exact one at
    T = 1, 2 and 4, and takes `dense` where none smaller is. A codec that was asked for by name is
    taken as it is, with its row in the table.

    Args:
        request: a request, or the text of one.
        logits_NC: (N, C) clean logits of `choice_sample_ids`.
        sample_ids: (N,) theirs.

    Raises:
        ConfigError: if a parameter does not fit the number of classes or rows.
    """
    if isinstance(request, str):
        request = CodecRequest.parse(request)
    is_judged = judged_rows(len(logits_NC))
    fitted_NC, judged_NC = logits_NC[~is_judged], logits_NC[is_judged]
    if request.name == AUTO:
        candidates = sorted(_candidates(fitted_NC), key=lambda codec: codec.row_bytes)
    else:
        candidates = [codec_class(request.name).from_request(request.parameters, fitted_NC)]
    measured = [fidelities(codec, judged_NC, sample_ids[is_judged]) for codec in candidates]
    accepted = [set(ACCEPTED_FOR) <= set(accepted_for(found)) for found in measured]
    # The last candidate is `dense`, or the only one.
    chosen = accepted.index(True) if any(accepted) else len(candidates) - 1
    table = [
        {
            "codec": str(codec),
            "row_bytes": codec.row_bytes,
            "fidelity": [fidelity._asdict() for fidelity in found],
            "accepted_for": accepted_for(found),
            "chosen": place == chosen,
        }
        for place, (codec, found) in enumerate(zip(candidates, measured, strict=True))
    ]
    return Choice(candidates[chosen], table)


def _num_deciding(num_samples: int, num_classes: int) -> int:
    return min(num_samples, MOST_ROWS, max(1, MOST_NUMBERS // num_classes))


def require_fits(request: CodecRequest, num_samples: int, num_classes: int) -> None:
    """Check what was asked for against the data, before a clean pass is made to decide it.

    Raises:
        ConfigError: if a parameter does not fit the number of classes or of rows to fit a basis to.
    """
    if request.name == AUTO:
        return
    num_rows = int((~judged_rows(_num_deciding(num_samples, num_classes))).sum())
    kind = codec_class(request.name)
    kind.require_fits(request.parameters, num_rows=num_rows, num_classes=num_classes)


def judged_rows(num_rows: int) -> npt.NDArray[np.bool_]:
    """Return which of the rows that decide are judged, (N,); the others fit a basis."""
    step = max(LARGEST_JUDGED_SHARE, num_rows // JUDGED_ROWS)
    return np.arange(num_rows) % step == 0


def fidelities(
    codec: Codec,
    logits_BC: npt.NDArray[np.float32],
    sample_ids: npt.NDArray[np.int64],
    temperatures: Sequence[float] = MEASURED_AT,
) -> list[Fidelity]:
    """Measure a codec on rows of logits, at each temperature; one that is bound, at its own.

    Args:
        codec: a codec.
        logits_BC: (B, C) exact.
        sample_ids: (B,) theirs.
        temperatures: each above 0.
    """
    rows = codec.encode(logits_BC, sample_ids=sample_ids, view=0)
    if codec.bound_to is not None:
        temperatures = [codec.bound_to]
    return [
        measure_fidelity(logits_BC, codec.decode(rows, temperature=value), temperature=value)
        for value in temperatures
    ]


def accepted_for(measured: Sequence[Fidelity]) -> list[float]:
    """Return the temperatures at which a codec keeps the gradient."""
    return [fidelity.temperature for fidelity in measured if fidelity.is_accepted]


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """Write a table of a `Choice` for people: angle / norm ratio at each temperature."""
    temperatures = sorted({found["temperature"] for row in table for found in row["fidelity"]})
    lines = [
        f"{'codec':34}{'bytes/row':>10}"
        + "".join(f"{f'T={value:g}':>14}" for value in temperatures)
    ]
    for row in table:
        cells = {
            found["temperature"]: f"{found['angle_degrees']:.1f} / {found['norm_ratio']:.3f}"
            for found in row["fidelity"]
        }
        line = f"{row['codec']:34}{row['row_bytes']:>10,}"
        line += "".join(f"{cells.get(value, '-'):>14}" for value in temperatures)
        lines.append(line + ("  <- chosen" if row["chosen"] else ""))
    return "\n".join(lines)


def _candidates(fitted_NC: npt.NDArray[np.float32]) -> Iterator[Codec]:
    """Yield what `auto` looks at: `dense`, and what is smaller."""
    num_rows, num_classes = fitted_NC.shape
    dense = Dense(num_classes)
    smaller: list[Codec] = [Int8(num_classes)]
    smaller += [TopK(num_classes, k) for k in _KEPT_TRIED if k < num_classes]
    tried = [r for r in _COEFFICIENTS_TRIED if r < min(num_rows, num_classes)]
    if tried and num_classes > DEFAULT_KEPT:
        largest = LowRank.fit(fitted_NC, k=DEFAULT_KEPT, r=tried[-1])
        smaller += [largest.truncated(r) for r in tried]
    yield from (codec for codec in smaller if codec.row_bytes < dense.row_bytes)
    yield dense

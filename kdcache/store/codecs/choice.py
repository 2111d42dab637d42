"""Choose the codec of a store: the requested one, or the smallest that preserves the gradient.

The choice is made once, from clean logits, before any row of an augmented view is written. At least
seven of eight rows are used to fit a basis. The others are held out, and codecs are compared on
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.rng import generator
from kdcache.store.codecs.codec import Codec
from kdcache.store.codecs.dense import Dense
from kdcache.store.codecs.fidelity import CodecFigures, Fidelity, measure_fidelity
from kdcache.store.codecs.int8 import Int8
from kdcache.store.codecs.kept_classes import DEFAULT_KEPT
from kdcache.store.codecs.lowrank import LowRank
from kdcache.store.codecs.registry import codec_class
from kdcache.store.codecs.request import AUTO, CodecRequest
from kdcache.store.codecs.topk import TopK

REQUIRED_TEMPERATURES = (1.0, 2.0, 4.0)
"""`auto` accepts a codec that preserves the gradient at all these temperatures."""

MEASURED_TEMPERATURES = (*REQUIRED_TEMPERATURES, 20.0)
"""Temperatures in the table of a `Choice`."""

MAX_ROWS = 16_384
"""Maximum number of rows that are used to choose."""
MAX_LOGITS = 1 << 25
"""Maximum number of logits that are used to choose (128 MiB of float32)."""

HELD_OUT_ROWS = 512
"""Number of held-out rows, approximately, if there are enough rows."""
MIN_HELD_OUT_STEP = 8
"""At most one of this many rows is held out."""

_CANDIDATE_K = (10, 32, 64)
_CANDIDATE_R = (16, 32, 64, 96, 128, 192, 256)


class Choice(NamedTuple):
    """A codec, and the measurements behind its choice."""

    codec: Codec
    table: list[CodecFigures]
    """One entry per measured codec, smallest first."""


def choice_sample_ids(
    num_samples: int, num_classes: int, *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return the ids of the samples whose clean logits are used to choose, (n,) sorted.

    n is at most 16,384, and smaller if the logits would take more than 128 MiB.
    """
    count = _num_sampled(num_samples, num_classes)
    drawn = generator(seed, "codec-choice").choice(num_samples, count, replace=False)
    return np.sort(drawn).astype(np.int64)


def choose_codec(
    request: CodecRequest | str,
    logits_NC: npt.NDArray[np.float32],
    sample_ids: npt.NDArray[np.int64],
) -> Choice:
    """Return the requested codec, or for `auto` the smallest accepted one, with its measurements.

    `auto` accepts a codec if the gradient with decoded logits is within 10 degrees and 5 % in
    length of the exact one at T = 1, 2 and 4. It chooses `dense` if no smaller codec is accepted. A
    codec that is requested by name is always chosen; the table has its measurements.

    Args:
        request: a request, or its text form.
        logits_NC: (N, C) clean logits of the samples of `choice_sample_ids`.
        sample_ids: (N,) the ids of these samples.

    Raises:
        ConfigError: if a parameter does not fit the number of classes or rows.
    """
    if isinstance(request, str):
        request = CodecRequest.parse(request)
    is_held_out = held_out_rows(len(logits_NC))
    fitted_NC, held_out_NC = logits_NC[~is_held_out], logits_NC[is_held_out]
    if request.name == AUTO:
        candidates = sorted(_candidates(fitted_NC), key=lambda codec: codec.row_bytes)
    else:
        candidates = [codec_class(request.name).from_request(request.parameters, fitted_NC)]
    measured = [fidelities(codec, held_out_NC, sample_ids[is_held_out]) for codec in candidates]
    accepted = [set(REQUIRED_TEMPERATURES) <= set(accepted_for(found)) for found in measured]
    # The last candidate is `dense`, or the only one.
    chosen = accepted.index(True) if any(accepted) else len(candidates) - 1
    table: list[CodecFigures] = [
        {
            "codec": str(codec),
            "row_bytes": codec.row_bytes,
            "fidelity": [fidelity.figures for fidelity in found],
            "accepted_for": accepted_for(found),
            "chosen": index == chosen,
        }
        for index, (codec, found) in enumerate(zip(candidates, measured, strict=True))
    ]
    return Choice(candidates[chosen], table)


def _num_sampled(num_samples: int, num_classes: int) -> int:
    return min(num_samples, MAX_ROWS, max(1, MAX_LOGITS // num_classes))


def require_fits(request: CodecRequest, num_samples: int, num_classes: int) -> None:
    """Check a request against the size of the data, before the clean view is computed.

    Raises:
        ConfigError: if a parameter is too large for the number of classes, or of rows that a basis
            is fitted to.
    """
    if request.name == AUTO:
        return
    num_rows = int((~held_out_rows(_num_sampled(num_samples, num_classes))).sum())
    kind = codec_class(request.name)
    kind.require_fits(request.parameters, num_rows=num_rows, num_classes=num_classes)


def held_out_rows(num_rows: int) -> npt.NDArray[np.bool_]:
    """Return which rows are held out, (N,) bool; a basis is fitted to the others."""
    step = max(MIN_HELD_OUT_STEP, num_rows // HELD_OUT_ROWS)
    return np.arange(num_rows) % step == 0


def fidelities(
    codec: Codec,
    logits_BC: npt.NDArray[np.float32],
    sample_ids: npt.NDArray[np.int64],
    temperatures: Sequence[float] = MEASURED_TEMPERATURES,
) -> list[Fidelity]:
    """Measure a codec on logits at each temperature.

    Args:
        codec: a codec.
        logits_BC: (B, C) exact logits.
        sample_ids: (B,) their sample ids.
        temperatures: each above 0. A codec that is bound to one temperature is measured there
            instead.
    """
    # These rows are not stored, so any distinct numbers serve as view keys.
    rows = codec.encode(logits_BC, view_keys=sample_ids, view=0)
    if codec.bound_to is not None:
        temperatures = [codec.bound_to]
    return [
        measure_fidelity(logits_BC, codec.decode(rows, temperature=value), temperature=value)
        for value in temperatures
    ]


def accepted_for(measured: Sequence[Fidelity]) -> list[float]:
    """Return the temperatures at which the gradient is preserved."""
    return [fidelity.temperature for fidelity in measured if fidelity.is_accepted]


def format_table(table: Sequence[CodecFigures]) -> str:
    """Format the table of a `Choice` as text, with angle / norm ratio at each temperature."""
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
    """Yield the candidates of `auto`: codecs with smaller rows than `dense`, and `dense` last."""
    num_rows, num_classes = fitted_NC.shape
    dense = Dense(num_classes)
    smaller: list[Codec] = [Int8(num_classes)]
    smaller += [TopK(num_classes, k) for k in _CANDIDATE_K if k < num_classes]
    ranks = [r for r in _CANDIDATE_R if r < min(num_rows, num_classes)]
    if ranks and num_classes > DEFAULT_KEPT:
        largest = LowRank.fit(fitted_NC, k=DEFAULT_KEPT, r=ranks[-1])
        smaller += [largest.truncated(r) for r in ranks]
    yield from (codec for codec in smaller if codec.row_bytes < dense.row_bytes)
    yield dense

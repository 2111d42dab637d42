"""What a codec does to the gradient that a student gets.

The gradient of the distillation loss with respect to a student's logits s is, for each row,
T (softmax(s / T) - softmax(z / T)). It is taken twice, with the teacher's exact logits z and with
the decoded ones, and compared as one vector over all rows: the angle says whether the student is
sent elsewhere, the norm ratio whether the loss changes its weight.

Where the student stands decides the angle, too; none is trained yet when a codec is chosen. It is
assumed to be on its way: s = 0.7 z + 0.3 std(z) e for each row, with e standard normal, drawn from
a named seed. A better student has a smaller gradient and a larger angle.

The noise of drawn rows counts in full here, although it averages out over samples and views in the
gradient of a weight; a bias, such as that of a uniform tail, stays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.rng import generator

STUDENT_SHARE = 0.7
"""Of the teacher's logits in the assumed student's."""

STUDENT_NOISE = 0.3
"""Deviation of the assumed student's own part, in units of the row's."""

LARGEST_ANGLE_DEGREES = 10.0
NORM_RATIOS = (0.95, 1.05)

_BLOCK_NUMBERS = 1 << 20


class Fidelity(NamedTuple):
    """What a codec does at one temperature."""

    temperature: float
    angle_degrees: float
    """Between the gradients with decoded and with exact logits, in [0, 180]."""
    norm_ratio: float
    """Length of the gradient with decoded logits over that with exact ones."""
    kl: float
    """KL(exact || decoded) of the teacher's probabilities, in nats, mean over the rows."""

    @property
    def is_accepted(self) -> bool:
        """Whether a student learns the same from decoded logits."""
        low, high = NORM_RATIOS
        return self.angle_degrees <= LARGEST_ANGLE_DEGREES and low <= self.norm_ratio <= high


def measure_fidelity(
    logits_BC: npt.NDArray[np.float32],
    decoded_BC: npt.NDArray[np.float32],
    *,
    temperature: float,
    seed: int = 0,
) -> Fidelity:
    """Compare decoded with exact logits.

    Args:
        logits_BC: (B, C) exact.
        decoded_BC: (B, C) of the same rows, decoded for this temperature.
        temperature: T, above 0.
        seed: of the assumed student.
    """
    rng = generator(seed, "assumed-student")
    products = np.zeros(3)
    divergence = 0.0
    block_rows = max(1, _BLOCK_NUMBERS // logits_BC.shape[1])
    for start in range(0, len(logits_BC), block_rows):
        exact_BC = logits_BC[start : start + block_rows].astype(np.float64)
        student_BC = assumed_student(exact_BC, rng)
        log_exact_BC = _log_softmax(exact_BC / temperature)
        log_decoded_BC = _log_softmax(decoded_BC[start : start + block_rows] / temperature)
        probs_BC = np.exp(_log_softmax(student_BC / temperature))
        exact_gradient = (probs_BC - np.exp(log_exact_BC)).ravel()
        decoded_gradient = (probs_BC - np.exp(log_decoded_BC)).ravel()
        products += (
            exact_gradient @ exact_gradient,
            exact_gradient @ decoded_gradient,
            decoded_gradient @ decoded_gradient,
        )
        divergence += float((np.exp(log_exact_BC) * (log_exact_BC - log_decoded_BC)).sum())
    angle, ratio = angle_and_ratio(*products)
    return Fidelity(float(temperature), angle, ratio, divergence / len(logits_BC))


def assumed_student(
    exact_BC: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return logits of a student on its way to these, (B, C)."""
    deviation_B1 = exact_BC.std(axis=1, keepdims=True)
    noise_BC = rng.standard_normal(exact_BC.shape)
    return STUDENT_SHARE * exact_BC + STUDENT_NOISE * deviation_B1 * noise_BC


def angle_and_ratio(exact: float, between: float, decoded: float) -> tuple[float, float]:
    """Return the angle in degrees and the ratio of lengths, from squares and inner product."""
    if exact == 0:  # one class, or a teacher that tells none apart
        return (0.0, 1.0) if decoded == 0 else (90.0, math.inf)
    if decoded == 0:
        return 90.0, 0.0
    cosine = between / math.sqrt(exact * decoded)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), math.sqrt(decoded / exact)


def _log_softmax(logits_BC: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=1, keepdims=True)
    return np.asarray(shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True)))

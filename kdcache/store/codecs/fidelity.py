"""Measure how a codec changes the gradient of the distillation loss.

For each row, the gradient with respect to the student's logits s is
T (softmax(s / T) - softmax(z / T)). It is computed with the teacher's exact logits z and with the
decoded ones. The two gradients, concatenated over all rows, are compared by their angle (a change
of direction) and by the ratio of their norms (a change of the loss's weight).

The angle depends on the student, but no student is trained when a codec is chosen. So a partly
trained one is assumed: s = 0.7 z + 0.3 std(z) e for each row, with e standard normal from a fixed
seed. A better student has a smaller gradient and a larger angle.

The noise of `sampled` rows counts in full here, although in the gradient of a weight it averages
out over samples and views. A bias, such as that of a uniform tail, does not average out.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from kdcache.rng import generator

STUDENT_SHARE = 0.7
"""Weight of the teacher's logits in those of the assumed student."""

STUDENT_NOISE = 0.3
"""Standard deviation of the noise, relative to that of the row."""

MAX_ANGLE_DEGREES = 10.0
"""Largest angle that `auto` accepts."""

NORM_RATIOS = (0.95, 1.05)
"""Smallest and largest norm ratio that `auto` accepts."""

_BLOCK_LOGITS = 1 << 20


class Fidelity(NamedTuple):
    """The effect of a codec on the gradient at one temperature."""

    temperature: float
    angle_degrees: float
    """Angle between the gradients with decoded and with exact logits, in [0, 180]."""
    norm_ratio: float
    """Norm of the gradient with decoded logits, divided by that with exact logits."""
    kl: float
    """Mean KL(exact || decoded) of the teacher's probabilities, in nats."""

    @property
    def figures(self) -> FidelityFigures:
        """The fields as JSON content."""
        return {
            "temperature": self.temperature,
            "angle_degrees": self.angle_degrees,
            "norm_ratio": self.norm_ratio,
            "kl": self.kl,
        }

    @property
    def is_accepted(self) -> bool:
        """True if angle and norm ratio are within the limits of `auto`."""
        low, high = NORM_RATIOS
        return self.angle_degrees <= MAX_ANGLE_DEGREES and low <= self.norm_ratio <= high


class FidelityFigures(TypedDict):
    """The fields of `Fidelity`, as JSON content."""

    temperature: float
    angle_degrees: float
    norm_ratio: float
    kl: float


class CodecFigures(TypedDict):
    """The measurements of one codec, as JSON content."""

    codec: str
    """Its text form."""
    row_bytes: int
    fidelity: list[FidelityFigures]
    """At each of the measured temperatures."""
    accepted_for: list[float]
    """Temperatures at which `auto` accepts it."""
    chosen: bool


def measure_fidelity(
    logits_BC: npt.NDArray[np.float32],
    decoded_BC: npt.NDArray[np.float32],
    *,
    temperature: float,
    seed: int = 0,
) -> Fidelity:
    """Compare the gradients with decoded and with exact logits.

    Args:
        logits_BC: (B, C) exact logits.
        decoded_BC: (B, C) decoded logits of the same rows, for this temperature.
        temperature: T, above 0.
        seed: seed of the assumed student's noise.
    """
    rng = generator(seed, "assumed-student")
    products = np.zeros(3)
    divergence = 0.0
    block_rows = max(1, _BLOCK_LOGITS // logits_BC.shape[1])
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
    """Return the logits of a partly trained student, (B, C), from the teacher's logits."""
    deviation_B1 = exact_BC.std(axis=1, keepdims=True)
    noise_BC = rng.standard_normal(exact_BC.shape)
    return STUDENT_SHARE * exact_BC + STUDENT_NOISE * deviation_B1 * noise_BC


def angle_and_ratio(exact: float, between: float, decoded: float) -> tuple[float, float]:
    """Return angle in degrees and norm ratio of two vectors, from their inner products.

    Args:
        exact: squared norm of the exact gradient.
        between: inner product of both.
        decoded: squared norm of the decoded gradient.
    """
    if exact == 0:  # one class, or a teacher with equal logits
        return (0.0, 1.0) if decoded == 0 else (90.0, math.inf)
    if decoded == 0:
        return 90.0, 0.0
    cosine = between / math.sqrt(exact * decoded)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), math.sqrt(decoded / exact)


def _log_softmax(logits_BC: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=1, keepdims=True)
    return np.asarray(shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True)))

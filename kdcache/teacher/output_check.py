"""Check a teacher's answers on labelled images before its pass.

Four mistakes cost a whole pass and show in no tensor shape: probabilities instead of logits,
classes in another order than the data's, a normalisation that the teacher was not trained with, and
a head that was never trained. A few hundred labelled images reveal all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.channels import DATA, KNOWN_NORMALISATIONS, describe_channels
from kdcache.data.beton import Beton
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.sample_text import describe_sample
from kdcache.data.views import Views
from kdcache.errors import TeacherError
from kdcache.progress import logger
from kdcache.teacher.answers import (
    Answers,
    LabelledImages,
    measure_answers,
    other_normalisation,
    read_labelled_images,
)
from kdcache.teacher.ensemble import Ensemble, EnsembleForward, Forward
from kdcache.teacher.forward import TeacherForward
from kdcache.teacher.teacher import Teacher


class Problem(NamedTuple):
    """Something that looks wrong with a teacher's answers."""

    text: str
    """What was measured; it continues "the teacher X ..."."""
    causes: tuple[str, ...]
    """What the user should look at; empty if the text says it."""


MIN_IMAGES, MAX_IMAGES = 64, 512
"""Limits of the number of images, which is a hundredth of the pass."""

MAX_PIXEL_BYTES = 1 << 28
"""Maximum size of their pixels in memory, unless one batch is larger."""

SUM_TOLERANCE = 0.02
"""How far the sum of a row of probabilities may be from 1: bfloat16 rounds each by up to 0.4 %."""

MAX_LUCK = 0.05
"""A teacher is at chance if guessing is at least as good with more than this probability."""

IS_ONE_TO_ONE = 0.5
"""The classes stand in another order if a renaming makes at least this fraction right."""

MIN_IMAGES_PER_CLASS = 4
"""Images per class from which on a renaming of classes is looked for."""

IS_SWAPPED = 0.7
"""Classes have changed places if more than this fraction of their images get another answer."""

IS_CONSTANT = 0.9
"""Fraction of images with one answer, from which on that answer is named."""

MIN_Z = 3.0
"""Standard deviations by which another normalisation must be better to be named."""

MAX_TOP1_SHORTFALL = 1.0
"""Percentage points by which a teacher may stay below its reported accuracy, beside chance."""

CANDIDATES = {
    **{name: tuple(map(list, values)) for name, values in KNOWN_NORMALISATIONS.items()},
    "0.5 --teacher-std 0.5": ([0.5] * 3, [0.5] * 3),
}
"""Common normalisations, by what to write after `--teacher-mean`."""


def check_outputs(
    teacher: Ensemble,
    forward: Forward,
    beton: Beton,
    views: Views,
    *,
    batch_size: int,
    num_forwards: int,
    val: Beton | None = None,
) -> None:
    """Check what each teacher answers on random training images; warn if it looks wrong.

    Args:
        teacher: one teacher or several.
        forward: their forward.
        beton: the training images.
        views: the views at the teacher's image size.
        batch_size: images per forward.
        num_forwards: forwards of the pass that follows; the check takes about a hundredth of it.
        val: the evaluation images, on which a reported accuracy is compared.

    Raises:
        TeacherError: if an output is NaN or infinite, the outputs are probabilities although
            logits are expected, or the other way round.
    """
    wanted = min(max(num_forwards // 100, MIN_IMAGES), MAX_IMAGES)
    wanted = min(wanted, max(1, MAX_PIXEL_BYTES // (3 * views.image_size**2)))
    batch = min(batch_size, wanted)
    count = -(-wanted // batch) * batch
    images = read_labelled_images(beton, views, count, batch)
    val_images = None
    if val is not None and any(member.reported_top1 is not None for member in teacher.members):
        val_images = read_labelled_images(val, views, count, batch)
    members = forward.members if isinstance(forward, EnsembleForward) else [forward]
    for member, run in zip(teacher.members, members, strict=True):
        _check_member(member, run, images, beton)
        if val_images is not None and member.reported_top1 is not None:
            _check_reported_top1(member, run, val_images, member.reported_top1)


def _check_member(
    teacher: Teacher, forward: TeacherForward, images: LabelledImages, beton: Beton
) -> None:
    answers = measure_answers(forward, images)
    _require_finite(teacher, answers, images, beton)
    _require_kind_of_output(teacher, answers)
    hits = answers.predictions == images.labels
    logger.info(
        "teacher %s is right on %.1f %% of %d labelled training images, cross-entropy %.3f, mean "
        "confidence %.0f %%",
        teacher.name,
        100 * hits.mean(),
        len(hits),
        answers.nll.mean(),
        100 * answers.confidence.mean(),
    )
    problem = _problem(answers, images.labels, beton.manifest.class_names)
    better = _better_normalisation(teacher, forward, images, hits, beton.manifest)
    if better:
        text = problem.text if problem else "may get another mean and std than it was trained with"
        problem = Problem(text, (better,))
    elif problem and problem.causes:
        used = f"{describe_channels(teacher.mean)} and {describe_channels(teacher.std)} are used"
        others = (f"its mean and std ({used})", "its head, if it was not trained on these classes")
        problem = Problem(problem.text, (*problem.causes, *others))
    if problem:
        logger.warning(
            "WARNING: the teacher %s %s. %sThe pass goes on; stop it if you do not expect this",
            teacher.name,
            problem.text,
            f"Look at {'; '.join(problem.causes)}. " if problem.causes else "",
        )


def _check_reported_top1(
    teacher: Teacher, forward: TeacherForward, images: LabelledImages, reported: float
) -> None:
    """Warn if a teacher is clearly less often right than its file or publisher reports."""
    hits = measure_answers(forward, images).predictions == images.labels
    found, share = 100 * hits.mean(), reported / 100
    spread = 100 * math.sqrt(max(share * (1 - share), 1 / len(hits)) / len(hits))
    if found < reported - MIN_Z * spread - MAX_TOP1_SHORTFALL:
        logger.warning(
            "WARNING: the teacher %s is right on %.1f %% of %d images of the evaluation split, but "
            "%.2f %% was reported. Look at its normalisation, its image size and the order of its "
            "classes. The pass goes on; stop it if you do not expect this",
            teacher.name,
            found,
            len(hits),
            reported,
        )


def _require_finite(
    teacher: Teacher, answers: Answers, images: LabelledImages, beton: Beton
) -> None:
    bad = np.flatnonzero(~np.isfinite(answers.total) | ~np.isfinite(answers.nll))
    if len(bad):
        first = bad[np.argmin(images.sample_ids[bad])]
        kinds = "NaN or infinity"
        if teacher.output == "probabilities":
            kinds += ", or a negative probability,"
        raise TeacherError(
            f"the teacher {teacher.name} gives {kinds} for "
            f"{describe_sample(beton, int(images.sample_ids[first]))} and {len(bad) - 1} more of "
            f"{len(images.labels)} images, expected finite logits. Try --precision fp32, or check "
            "the weights, --teacher-mean and --teacher-std"
        )


def _require_kind_of_output(teacher: Teacher, answers: Answers) -> None:
    """Check that the outputs are logits, or probabilities if the options say so."""
    are_fractions = bool((answers.low >= 0).all() and (answers.high <= 1 + SUM_TOLERANCE).all())
    worst = int(np.abs(answers.total - 1).argmax())
    are_probabilities = are_fractions and abs(answers.total[worst] - 1) <= SUM_TOLERANCE
    if teacher.output == "logits" and are_probabilities:
        raise TeacherError(
            f"the teacher {teacher.name} returns probabilities: every row is in [0, 1] and its sum "
            "is 1, expected logits. Use --teacher-output probabilities, which takes their "
            "logarithm, or let the model end before its softmax"
        )
    if teacher.output == "probabilities" and not are_probabilities:
        raise TeacherError(
            parameter="teacher_output",
            value="probabilities",
            rule=(
                f"rows in [0, 1] with the sum 1, but {teacher.name} returns values from "
                f"{round(answers.low.min(), 6):g} to {answers.high.max():.3g}, and a row with the "
                f"sum {answers.total[worst]:.4g}"
            ),
            remedy="Leave the option out if it returns logits",
        )


def _problem(
    answers: Answers, labels: npt.NDArray[np.int64], class_names: list[str]
) -> Problem | None:
    """Return what looks wrong with the answers, or None."""
    count, num_classes = len(labels), len(class_names)
    hits = int((answers.predictions == labels).sum())
    accuracy, confidence = hits / count, float(answers.confidence.mean())
    nll, nll_of_guessing = float(answers.nll.mean()), math.log(num_classes)
    chance = _chance(answers.predictions, labels, num_classes)
    found = f"right on {100 * accuracy:.1f} % of {count} labelled training images"
    if _is_at_chance(answers, labels, num_classes):
        text = (
            f"is {found}, no more than guessing ({100 * chance:.1f} %), with a mean confidence of "
            f"{100 * confidence:.0f} % and a cross-entropy of {nll:.2f} (guessing: "
            f"{nll_of_guessing:.2f})"
        )
        return Problem(text, (_cause(answers, labels, class_names),))
    if nll > nll_of_guessing:
        text = (
            f"is {found}, but its cross-entropy of {nll:.2f} is worse than guessing "
            f"({nll_of_guessing:.2f}): it is sure of wrong answers, or its logits are too large"
        )
        return Problem(text, (_cause(answers, labels, class_names),))
    if swapped := _swapped_classes(answers, labels):
        label, answer = next(iter(swapped.items()))
        text = (
            f"is {found}, but {len(swapped)} classes seem to have changed places: it answers "
            f"{class_names[answer]!r} (class {answer}) for most images of {class_names[label]!r} "
            f"(class {label}), and so on"
        )
        return Problem(text, ())
    if nll > 2 * _nll_of_accuracy(accuracy, num_classes) + 0.5 and confidence < accuracy / 2:
        text = (
            f"is {found}, but only {100 * confidence:.1f} % sure on average: its outputs may be "
            "sigmoids, cosine similarities or logits that were divided by a temperature"
        )
        return Problem(text, ())
    return None


def _is_at_chance(answers: Answers, labels: npt.NDArray[np.int64], num_classes: int) -> bool:
    """Return True if the answers are right no more often than answers that ignore the image."""
    hits = int((answers.predictions == labels).sum())
    chance = _chance(answers.predictions, labels, num_classes)
    is_low = hits / len(labels) < (1 + chance) / 2  # a few images prove little
    return is_low and _binomial_tail(hits, len(labels), chance) > MAX_LUCK


def _chance(
    predictions: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int
) -> float:
    """Return the accuracy of answers that are as frequent as these, but ignore the image."""
    frequent, answered = Counter(labels.tolist()), Counter(predictions.tolist())
    expected = sum(count * answered[label] for label, count in frequent.items()) / len(labels) ** 2
    return max(expected, 1 / num_classes)


def _nll_of_accuracy(accuracy: float, num_classes: int) -> float:
    """Return the cross-entropy of a model that is always as sure as it is right."""
    wrong = 1 - accuracy
    entropy = sum(-share * math.log(share) for share in (accuracy, wrong) if share > 0)
    return entropy + wrong * math.log(max(num_classes - 1, 1))


def _binomial_tail(hits: int, count: int, probability: float) -> float:
    """Return the probability of at least `hits` successes in `count` independent trials."""
    if probability >= 1:
        return 1.0
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(probability)
        + (count - k) * math.log1p(-probability)
        for k in range(hits, count + 1)
    ]
    return min(1.0, sum(map(math.exp, logs)))


def _cause(answers: Answers, labels: npt.NDArray[np.int64], class_names: list[str]) -> str:
    """Name the cause that wrong answers show: one answer for all images, or renamed classes."""
    answer, times = Counter(answers.predictions.tolist()).most_common(1)[0]
    if times >= IS_CONSTANT * len(labels):
        share = 100 * times / len(labels)
        return f"why it answers {class_names[answer]!r} for {share:.0f} % of the images"
    usual: dict[int, int] = {}
    renamed = 0
    pairs = Counter(zip(labels.tolist(), answers.predictions.tolist(), strict=True))
    for (label, answer), times in pairs.most_common():
        if label not in usual:
            usual[label] = answer
            renamed += times
    others = {label: answer for label, answer in sorted(usual.items()) if answer != label}
    if (
        others
        and len(labels) >= MIN_IMAGES_PER_CLASS * len(usual)
        and renamed >= IS_ONE_TO_ONE * len(labels)
        and len(set(usual.values())) > len(usual) / 2
    ):
        label, answer = next(iter(others.items()))
        return (
            f"the order of its classes: it answers {class_names[answer]!r} (class {answer}) for "
            f"most images of {class_names[label]!r} (class {label}), and with the classes renamed "
            f"so, it is right on {100 * renamed / len(labels):.0f} %"
        )
    return "the order of its classes"


def _swapped_classes(answers: Answers, labels: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return label -> usual answer for classes that have changed places among themselves.

    A class counts if it has enough images, and most of them get the answer of one other class. A
    weak teacher also mistakes one class for another, but then no class takes the place of that one.
    """
    pairs = Counter(zip(labels.tolist(), answers.predictions.tolist(), strict=True))
    num_images = Counter(labels.tolist())
    usual = {
        label: answer
        for (label, answer), times in pairs.items()
        if label != answer
        and num_images[label] >= MIN_IMAGES_PER_CLASS
        and times > IS_SWAPPED * num_images[label]
    }
    while lost := [label for label, answer in usual.items() if answer not in usual]:
        for label in lost:
            del usual[label]
    return dict(sorted(usual.items())) if len(set(usual.values())) == len(usual) else {}


def _better_normalisation(
    teacher: Teacher,
    forward: TeacherForward,
    images: LabelledImages,
    hits: npt.NDArray[np.bool_],
    data: BetonManifest,
) -> str | None:
    """Try common normalisations on a teacher that states none; name one that is clearly better."""
    if teacher.states_normalisation:
        return None
    best: tuple[float, str] | None = None
    candidates = CANDIDATES | {DATA: (data.mean, data.std)}
    for words, (mean, std) in candidates.items():
        if (mean, std) == (teacher.mean, teacher.std):
            continue
        with other_normalisation(forward, mean, std):
            answers = measure_answers(forward, images)
        other = answers.predictions == images.labels
        if _is_at_chance(answers, images.labels, forward.num_classes):
            continue
        gained, lost = int((other & ~hits).sum()), int((hits & ~other).sum())
        if gained - lost > MIN_Z * math.sqrt(gained + lost) and (
            best is None or other.mean() > best[0]
        ):
            best = float(other.mean()), words
    if best is None:
        return None
    return (
        f"its mean and std: with --teacher-mean {best[1]} it is right on {100 * best[0]:.1f} % of "
        f"these images, with those in use on {100 * hits.mean():.1f} %"
    )

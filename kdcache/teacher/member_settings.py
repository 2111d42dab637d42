"""Divide the values of the options about teachers among the teachers.

A single teacher takes at most one value of each option. Of several teachers, those that do not
state a setting themselves take one value each, in the order of `--teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from kdcache.channels import NormalisationWords, parse_normalisations
from kdcache.errors import ConfigError
from kdcache.models.description import WeightsDescription
from kdcache.models.registry import has_hidden_stem
from kdcache.options import Stem, TeacherOutput
from kdcache.teacher.sources import TeacherSource, WeightsFile

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class TeacherOptions:
    """The values of the options about teachers, each in the order in which it was given."""

    archs: Sequence[str] = ()
    normalisations: Sequence[NormalisationWords] = ()
    stems: Sequence[str] = ()
    """Words of `Stem`; the options check them."""
    outputs: Sequence[str] = ()
    """Words of `TeacherOutput`; the options check them."""

    @classmethod
    def of(
        cls,
        *,
        archs: Sequence[str],
        means: Sequence[str],
        stds: Sequence[str],
        stems: Sequence[str],
        outputs: Sequence[str],
    ) -> TeacherOptions:
        """Return the options of a command; see `kdcache.channels.parse_normalisations`."""
        return cls(archs, parse_normalisations(means, stds), stems, outputs)


@dataclass(frozen=True)
class MemberSettings:
    """What the options say about one teacher; None where they say nothing."""

    arch: str | None = None
    normalisation: NormalisationWords | None = None
    stem: Stem | None = None
    output: TeacherOutput = "logits"


def settings_per_member(
    given: TeacherOptions, specs: Sequence[str], sources: Sequence[TeacherSource]
) -> list[MemberSettings]:
    """Return the settings of each teacher.

    Args:
        given: the values of the options.
        specs: values of `--teacher`.
        sources: their origins.

    Raises:
        ConfigError: if an option is given another number of times than it is needed.
    """
    files = [source.about if isinstance(source, WeightsFile) else None for source in sources]
    lacks_arch = [about is not None and about.arch is None for about in files]
    archs = _divide("arch", given.archs, specs, lacks_arch)
    lacks_stem = [
        about is not None and _lacks_stem(about, arch)
        for about, arch in zip(files, archs, strict=True)
    ]
    stems = _divide("stem", given.stems, specs, lacks_stem)
    lacks_normalisation = [source.normalisation is None for source in sources]
    normalisations = _divide(
        "teacher_mean", given.normalisations, specs, lacks_normalisation, is_optional=True
    )
    outputs = _divide("teacher_output", given.outputs, specs, [True] * len(specs), is_optional=True)
    return [
        MemberSettings(
            arch,
            normalisation,
            cast("Stem | None", stem),
            cast("TeacherOutput", output or "logits"),
        )
        for arch, normalisation, stem, output in zip(
            archs, normalisations, stems, outputs, strict=True
        )
    ]


def recorded_normalisations(
    sources: Sequence[TeacherSource], means: Sequence[list[float]], stds: Sequence[list[float]]
) -> list[NormalisationWords]:
    """Return what a store recorded for the teachers that do not state their mean and std.

    Args:
        sources: origins of the teachers.
        means: (teachers, 3) of the store.
        stds: (teachers, 3) of the store.
    """
    if len(sources) != len(means):
        return []  # another ensemble, which the caller reports
    return [
        NormalisationWords.of_values(mean, std)
        for source, mean, std in zip(sources, means, stds, strict=True)
        if source.normalisation is None
    ]


_WHO_NEEDS_IT = {
    "arch": "--teacher that is a file and does not name its model",
    "stem": "--teacher that is a file and does not state which of two stems its model has",
    "teacher_mean": "--teacher that does not state its mean and std",
    "teacher_output": "--teacher, or left out",
}


def _divide(
    option: str,
    values: Sequence[_Value],
    specs: Sequence[str],
    needs_it: Sequence[bool],
    *,
    is_optional: bool = False,
) -> list[_Value | None]:
    """Return one value of an option, or None, per teacher."""
    if len(specs) == 1 and len(values) <= 1:
        return [*values, None][:1]
    if not values and is_optional:
        return [None] * len(specs)
    teachers = [spec for spec, needed in zip(specs, needs_it, strict=True) if needed]
    if len(values) != len(teachers):
        raise ConfigError(
            f"--{option.replace('_', '-')} is given {len(values)} times, expected "
            f"{len(teachers)}: once for each {_WHO_NEEDS_IT[option]}"
            f"{': ' if teachers else ''}{', '.join(teachers)}",
            parameter=option,
            value=True,
        )
    remaining = iter(values)
    return [next(remaining) if needed else None for needed in needs_it]


def _lacks_stem(about: WeightsDescription, arch: str | None) -> bool:
    """Return True if neither the metadata nor the tensors of a file tell the stem of its model."""
    name = about.arch or arch
    return about.stem is None and name is not None and has_hidden_stem(name)

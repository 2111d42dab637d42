"""Results say what they hold: no field is of type Any or an open dictionary, at any depth."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import pytest

import kdcache as kd
from kdcache.commands import COMMANDS, DEFAULT_COMMAND, function_for
from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.pack_result import PackPreview, PackResult
from kdcache.overview.facts import BetonFacts, StoreFacts, SubsetFacts, TeacherFacts
from kdcache.results import Result
from kdcache.store.codecs.fidelity import CodecFigures

OPEN = {
    # What a source says about itself depends on its kind, which may be the user's own.
    (BetonManifest, "made_from"),
    (BetonManifest, "skipped"),
    (BetonFacts, "made_from"),
    (TeacherFacts, "loss"),
    # Package -> version.
    (StoreFacts, "versions"),
    # Sample id -> image.
    (BetonFacts, "first_images"),
    (SubsetFacts, "first_images"),
    # Split -> typed value.
    (PackPreview, "samples"),
    (PackPreview, "class_sizes"),
    (PackResult, "betons"),
}
"""Fields whose content other files define."""


def result_types() -> list[type]:
    options = [DEFAULT_COMMAND[0], *(options for options, _ in COMMANDS.values())]
    for one in options:  # import the modules of all commands
        function_for(object.__new__(one))
    return [kind for kind in subclasses(Result) if kind is not Result]


def subclasses(kind: type) -> list[type]:
    return [kind, *(other for child in kind.__subclasses__() for other in subclasses(child))]


def parts(hint: object) -> Iterator[object]:
    """Yield a type and the types in it; an array of any dtype counts as one type."""
    yield hint
    if typing.get_origin(hint) is not None and "ndarray" not in str(typing.get_origin(hint)):
        for inner in typing.get_args(hint):
            yield from parts(inner)


def is_record(kind: object) -> bool:
    """Return True for a class of ours with typed fields."""
    return (
        isinstance(kind, type)
        and kind.__module__.startswith("kdcache.")
        and (is_dataclass(kind) or typing.is_typeddict(kind) or hasattr(kind, "_fields"))
    )


def open_fields(kind: type, seen: set[type]) -> Iterator[tuple[type, str]]:
    """Yield the fields of a class, and of the classes in them, that can hold anything."""
    if kind in seen:
        return
    seen.add(kind)
    hints = typing.get_type_hints(kind)
    names = [one.name for one in fields(kind)] if is_dataclass(kind) else list(kind.__annotations__)
    if typing.is_typeddict(kind):
        names = list(hints)
    for name in names:
        for part in parts(hints[name]):
            origin = typing.get_origin(part) or part
            is_open = part in (typing.Any, object) or (
                isinstance(origin, type)
                and issubclass(origin, Mapping)
                and not typing.is_typeddict(part)
            )
            if is_open:
                yield kind, name
            elif is_record(part):
                yield from open_fields(part, seen)


@pytest.mark.parametrize(
    "kind",
    [*result_types(), kd.Subset, kd.Beton, kd.Batch, kd.Policy, CodecFigures],
    ids=lambda kind: kind.__name__,
)
def test_no_field_can_hold_anything(kind):
    assert set(open_fields(kind, set())) <= OPEN


class Inner(typing.NamedTuple):
    anything: list[dict[str, int]] | None


class Outer(typing.TypedDict):
    inner: tuple[Inner, ...]
    name: str


def test_open_fields_are_found_at_any_depth(monkeypatch):
    for kind in (Inner, Outer):
        monkeypatch.setattr(kind, "__module__", "kdcache.example")
    hints = typing.get_type_hints
    monkeypatch.setattr(typing, "get_type_hints", lambda kind: hints(kind, globals()))
    assert set(open_fields(Outer, set())) == {(Inner, "anything")}

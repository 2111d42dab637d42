"""`kdcache` alone: what the workspace holds, what of it is stale, and what to run next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import KDCacheError, shell_line
from kdcache.options import StatusOptions
from kdcache.overview.cards import (
    Card,
    beton_card,
    run_card,
    store_card,
    subset_card,
    teacher_card,
)
from kdcache.results import JSON, Result
from kdcache.workspace import Workspace

_WALK = (
    ("*.beton", beton_card),
    ("teachers/*.safetensors", teacher_card),
    ("stores/*.zarr", store_card),
    ("subsets/*.npz", subset_card),
    ("subsets/*.beton", beton_card),
    ("runs/*/config.json", lambda path: run_card(path.parent)),
)
"""Everything that a workspace holds, in the order of the walk."""


@dataclass(frozen=True, kw_only=True)
class StatusItem(Result):
    """One thing that a workspace holds."""

    name: str
    """Path in the workspace."""
    kind: str
    about: str
    """Description in one line."""
    wrong: str | None
    """Why it cannot be used: unfinished, stale or damaged; None if it can."""


@dataclass(frozen=True, kw_only=True)
class StatusResult(Result):
    """What a workspace holds, and what to run next."""

    workspace: Path
    holds: tuple[StatusItem, ...]
    next: str
    """The next command, and why."""

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object, with the items by name."""
        return {
            "workspace": str(self.workspace),
            "holds": {
                item.name: {"kind": item.kind, "about": item.about, "wrong": item.wrong}
                for item in self.holds
            },
            "next": self.next,
        }


def status(options: StatusOptions) -> StatusResult:
    """Look through a workspace; nothing is changed, and manifests alone are read."""
    workspace = Workspace(Path(options.workspace))
    items = [*find_items(workspace), *_outside(workspace)]
    return StatusResult(
        workspace=workspace.root.resolve(),
        holds=tuple(items),
        next=next_step(items, workspace),
    )


def find_items(workspace: Workspace) -> Iterator[StatusItem]:
    """Yield everything in a workspace, judged."""
    data: str | None = None
    """Fingerprint of the training data."""
    teachers: dict[str, str] = {}
    """Name -> digest, of those that say it."""
    for pattern, make in _WALK:
        for path in sorted(workspace.root.glob(pattern)):
            named = path.parent if path.name == "config.json" else path
            name = str(named.relative_to(workspace.root))
            try:
                card = make(path)
            except (KDCacheError, OSError, KeyError, ValueError) as error:
                yield StatusItem(
                    name=name, kind="damaged", about="", wrong=f"damaged: {shell_line(error)}"
                )
                continue
            if path == workspace.beton("train"):
                data = card.data_fingerprint
            if card.kind == "teacher" and "digest" in card.facts:
                teachers[path.stem] = card.facts["digest"]
            is_split = pattern == "*.beton"  # the evaluation split is other data, and says no whose
            wrong = _unfinished(card) or (None if is_split else _stale(card, data, teachers))
            yield StatusItem(name=name, kind=card.kind, about=card.summary, wrong=wrong)


def _outside(workspace: Workspace) -> Iterator[StatusItem]:
    """Yield what was made last and lies elsewhere; a URL is not asked."""
    root = workspace.root.resolve()
    for kind in ("store", "subset"):
        path = workspace.recall(kind)
        if path is not None and not (isinstance(path, Path) and path.is_relative_to(root)):
            gone = isinstance(path, Path) and not path.exists()
            wrong = "damaged: it does not exist any more" if gone else None
            yield StatusItem(
                name=str(path),
                kind=kind,
                about="outside the workspace; see kdcache show",
                wrong=wrong,
            )


def _unfinished(card: Card) -> str | None:
    return None if card.unfinished is None else f"unfinished: {card.unfinished}"


def _stale(card: Card, data: str | None, teachers: dict[str, str]) -> str | None:
    """Return why a thing does not belong to the others, or None."""
    found = card.data_fingerprint
    if data is not None and found is not None and found != data:
        return (
            f"stale: made from other data (fingerprint {found[:12]}) than train.beton holds "
            f"({data[:12]})"
        )
    teacher, then = card.facts.get("teacher"), card.facts.get("teacher_digest")
    now = teachers.get(teacher) if teacher else None
    if now is not None and then is not None and now != then:
        return (
            f"stale: teachers/{teacher}.safetensors was trained again since (sha256 {then[:12]} "
            f"then, {now[:12]} now)"
        )
    return None


def next_step(items: list[StatusItem], workspace: Workspace) -> str:
    """Return the command that takes the walk on, and why."""

    def usable(kind: str) -> list[StatusItem]:
        return [item for item in items if item.kind == kind and item.wrong is None]

    def unfinished(kind: str) -> list[StatusItem]:
        found = (item for item in items if item.kind == kind and item.wrong)
        return [item for item in found if str(item.wrong).startswith("unfinished")]

    begun_runs = unfinished("run")
    teachers_begun = [item for item in begun_runs if _is_of_teacher(item)]
    students = [item for item in usable("run") if not _is_of_teacher(item)]
    if not workspace.beton("train").exists():
        return "kdcache pack SOURCE: nothing is packed yet; digits needs no file"
    if not usable("store"):
        if begun := unfinished("store"):
            return f"kdcache build-logits, with the arguments that {begun[0].name} was begun with"
        if teachers := usable("teacher"):
            name = Path(teachers[0].name).stem
            return f"kdcache build-logits --teacher {name}: there is a teacher and no store"
        if teachers_begun:
            name = teachers_begun[0].name
            return f"kdcache train-teacher, with the arguments that {name} was begun with"
        return (
            "kdcache train-teacher --model resnet50, or kdcache build-logits with a teacher of "
            "your own: there is none here"
        )
    if not usable("subset") and not students:
        return "kdcache select --method medium --keep 0.7: nothing is selected"
    if begun := [item for item in begun_runs if item not in teachers_begun]:
        return (
            f"kdcache train --resume --out {workspace.root / begun[0].name}, with the arguments "
            "that it was begun with"
        )
    if not students:
        return "kdcache train: a store and a subset are there"
    return "kdcache train with another subset, student or seed, or kdcache evaluate"


def _is_of_teacher(item: StatusItem) -> bool:
    return item.name.startswith("runs/teacher-")

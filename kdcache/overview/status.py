"""`kdcache` alone: what the workspace holds, which parts are stale, and what to run next."""

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

_CARDS = (
    ("*.beton", beton_card),
    ("teachers/*.safetensors", teacher_card),
    ("stores/*.zarr", store_card),
    ("subsets/*.npz", subset_card),
    ("subsets/*.beton", beton_card),
    ("runs/*/config.json", lambda path: run_card(path.parent)),
)
"""(pattern, function that makes the card), in the order in which the files are made."""


@dataclass(frozen=True, kw_only=True)
class StatusItem(Result):
    """A file or folder of the workspace, and its state."""

    name: str
    """Path relative to the workspace."""
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
    """Describe a workspace. It reads only manifests and changes nothing."""
    workspace = Workspace(Path(options.workspace))
    items = [*find_items(workspace), *_outside(workspace)]
    return StatusResult(
        workspace=workspace.root.resolve(),
        holds=tuple(items),
        next=next_step(items, workspace),
    )


def find_items(workspace: Workspace) -> Iterator[StatusItem]:
    """Yield everything in a workspace with its state."""
    data: str | None = None
    """Fingerprint of train.beton's data."""
    teachers: dict[str, str] = {}
    """Name -> digest, for teachers that record one."""
    for pattern, make_card in _CARDS:
        for path in sorted(workspace.root.glob(pattern)):
            shown = path.parent if path.name == "config.json" else path
            name = str(shown.relative_to(workspace.root))
            try:
                card = make_card(path)
            except (KDCacheError, OSError, KeyError, ValueError) as error:
                yield StatusItem(
                    name=name, kind="damaged", about="", wrong=f"damaged: {shell_line(error)}"
                )
                continue
            if path == workspace.beton("train"):
                data = card.data_fingerprint
            if card.kind == "teacher" and isinstance(digest := _fact(card, "digest"), str):
                teachers[path.stem] = digest
            # The evaluation split has other data, and does not record the training data.
            is_split = pattern == "*.beton"
            wrong = _unfinished(card) or (None if is_split else _stale(card, data, teachers))
            yield StatusItem(name=name, kind=card.kind, about=card.summary, wrong=wrong)


def _outside(workspace: Workspace) -> Iterator[StatusItem]:
    """Yield the latest store and subset if they lie elsewhere; URLs are not contacted."""
    root = workspace.root.resolve()
    for kind in ("store", "subset"):
        path = workspace.recall(kind)
        if path is not None and not (isinstance(path, Path) and path.is_relative_to(root)):
            gone = isinstance(path, Path) and not path.exists()
            wrong = "damaged: it no longer exists" if gone else None
            yield StatusItem(
                name=str(path),
                kind=kind,
                about="outside the workspace; see kdcache show",
                wrong=wrong,
            )


def _unfinished(card: Card) -> str | None:
    return None if card.unfinished is None else f"unfinished: {card.unfinished}"


def _fact(card: Card, name: str) -> object:
    """Return a fact of a card of any kind, or None if it has no such fact."""
    return dict(card.facts).get(name)


def _stale(card: Card, data: str | None, teachers: dict[str, str]) -> str | None:
    """Return why a card's data or teacher do not match the workspace's, or None."""
    found = card.data_fingerprint
    if data is not None and found is not None and found != data:
        return (
            f"stale: made from data with the fingerprint {found[:12]}, expected that of "
            f"train.beton, {data[:12]}"
        )
    teacher, then = _fact(card, "teacher"), _fact(card, "teacher_digest")
    now = teachers.get(teacher) if isinstance(teacher, str) else None
    if now is not None and isinstance(then, str) and now != then:
        return (
            f"stale: teachers/{teacher}.safetensors was trained again since then (its sha256 was "
            f"{then[:12]} and is now {now[:12]})"
        )
    return None


def next_step(items: list[StatusItem], workspace: Workspace) -> str:
    """Return the command to run next, and why."""

    def usable(kind: str) -> list[StatusItem]:
        return [item for item in items if item.kind == kind and item.wrong is None]

    def unfinished(kind: str) -> list[StatusItem]:
        found = (item for item in items if item.kind == kind and item.wrong)
        return [item for item in found if str(item.wrong).startswith("unfinished")]

    unfinished_runs = unfinished("run")
    unfinished_teachers = [item for item in unfinished_runs if _is_teacher_run(item)]
    students = [item for item in usable("run") if not _is_teacher_run(item)]
    if not workspace.beton("train").exists():
        return "kdcache pack SOURCE: nothing is packed yet; the source digits needs no download"
    if not usable("store"):
        if stores := unfinished("store"):
            return f"kdcache build-logits, with the same arguments: {stores[0].name} is unfinished"
        if teachers := usable("teacher"):
            name = Path(teachers[0].name).stem
            return f"kdcache build-logits --teacher {name}: there is a teacher and no store"
        if unfinished_teachers:
            name = unfinished_teachers[0].name
            return f"kdcache train-teacher, with the same arguments: {name} is unfinished"
        return (
            "kdcache train-teacher --model resnet50, or kdcache build-logits with a teacher of "
            "your own: the workspace has no teacher"
        )
    if not usable("subset") and not students:
        return "kdcache select --method medium --keep 0.7: nothing is selected yet"
    if runs := [item for item in unfinished_runs if item not in unfinished_teachers]:
        return (
            f"kdcache train --resume --out {workspace.root / runs[0].name}, with the same "
            "arguments: this run is unfinished"
        )
    if not students:
        return "kdcache train: the store and the subset are ready"
    return "kdcache train with another subset, student or seed, or kdcache evaluate"


def _is_teacher_run(item: StatusItem) -> bool:
    return item.name.startswith("runs/teacher-")

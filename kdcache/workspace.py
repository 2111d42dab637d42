"""Find files in a workspace, and remember which of them were finished last.

workspace/
  train.beton train.json                      `kdcache pack`; the same for val, and for a
  train.digests.npy train.names.parquet       subset in subsets/
  teachers/NAME.safetensors                   `kdcache train-teacher`
  stores/NAME.zarr                            `kdcache build-logits`
  subsets/NAME.npz                            `kdcache select`
  runs/NAME/                                  `kdcache train`
  workspace.json                              the last finished store, subset and run
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcache.errors import ConfigError, DatasetError
from kdcache.locks import file_lock
from kdcache.seals import read_sealed_json, write_sealed_json

Remembered = Literal["store", "subset", "run"]


@dataclass(frozen=True)
class Workspace:
    """A workspace folder; it need not exist yet."""

    root: Path

    def beton(self, split: str) -> Path:
        """Return the path of a split's beton."""
        return self.root / f"{split}.beton"

    def teacher(self, name: str) -> Path:
        """Return the path of a teacher's weights."""
        return self.root / "teachers" / f"{name}.safetensors"

    def store(self, name: str) -> Path:
        """Return the path of a teacher's logit store."""
        return self.root / "stores" / f"{name}.zarr"

    def subset(self, name: str) -> Path:
        """Return the path of a subset file."""
        return self.root / "subsets" / f"{name}.npz"

    def run(self, name: str) -> Path:
        """Return the path of a run folder."""
        return self.root / "runs" / name

    @property
    def _memory_path(self) -> Path:
        return self.root / "workspace.json"

    def _memory(self) -> dict[str, str]:
        path = self._memory_path
        if not path.exists():
            return {}
        remedy = f"It only names the files that were made last. Remove it: rm {path}"
        return read_sealed_json(path, remedy=remedy)

    def remember(self, what: Remembered, path: Path | str) -> None:
        """Record a path, or the URL of a store, as the last finished one of its kind."""
        if isinstance(path, Path):
            path = path.resolve()
            root = self.root.resolve()
            # Relative inside the workspace, so that the record survives a move of the workspace.
            path = path.relative_to(root) if path.is_relative_to(root) else path
        # Without the lock, a record that another process makes at the same time would be lost.
        with file_lock(self.root / ".workspace.lock", purpose="note", wait=True):
            write_sealed_json(self._memory_path, self._memory() | {what: str(path)})

    def recall(self, what: Remembered) -> Path | str | None:
        """Return the path or URL of the last finished store, subset or run, or None."""
        remembered = self._memory().get(what)
        if remembered is None or "://" in remembered:
            return remembered
        return self.root.resolve() / remembered

    def require_beton(self, split: str = "train") -> Path:
        """Return a packed beton's path.

        Raises:
            DatasetError: if the split is not packed; names the command that packs it.
        """
        path = self.beton(split)
        if not path.exists():
            raise DatasetError(
                f"{path} is missing, expected packed images. Run: kdcache pack SOURCE"
            )
        return path

    def require_teachers(self, teachers: tuple[str, ...]) -> tuple[str, ...]:
        """Return the given teachers, or else the name of the only one in teachers/.

        Raises:
            ConfigError: if teachers/ holds none, or more than one; names them.
        """
        if teachers:
            return teachers
        folder = self.teacher("NAME").parent
        names = sorted(path.stem for path in folder.glob("*.safetensors"))
        if not names:
            raise ConfigError(
                f"--teacher is not given and {folder} holds none. Run: kdcache train-teacher "
                "--model resnet50, or give a path, published weights or module:callable",
                parameter="teacher",
            )
        if len(names) > 1:
            raise ConfigError(
                f"--teacher is not given and {folder} holds more than one, expected one of "
                f"{', '.join(names)}",
                parameter="teacher",
            )
        return (names[0],)

    def require_store(
        self, teacher: Path | str | None, store: Path | str | None = None
    ) -> Path | str:
        """Return a store by path or URL, the store of a teacher, or the last one built.

        Raises:
            ConfigError: if there is none, or both are given; names the command that builds it.
        """
        if store is not None:
            if teacher is not None:
                raise ConfigError(
                    f"--teacher is {teacher} and --store is {store}, expected one of them: each "
                    "names the store",
                    parameter="teacher",
                    value=teacher,
                )
            return str(store) if "://" in str(store) else Path(store)
        path = self.recall("store") if teacher is None else self.store(teacher_name(str(teacher)))
        if isinstance(path, str):
            return path
        if path is None or not path.exists():
            what = "no store was built yet" if path is None else f"{path} does not exist"
            raise ConfigError(
                parameter="teacher",
                value=teacher or "not given",
                problem=f"{what}",
                remedy=f"Run: kdcache build-logits --teacher {teacher or 'NAME'}",
            )
        return path

    def require_subset(self, subset: Path | str | None) -> Path | None:
        """Return the path of a subset, or None for `full`.

        Raises:
            ConfigError: if nothing is selected, or the named subset does not exist.
        """
        if str(subset) == "full":
            return None
        if subset is None:
            last = self.recall("subset")
            path = None if last is None else Path(last)
            if path is None or not path.exists():
                raise ConfigError(
                    "--subset is not given and nothing is selected yet. Run: kdcache select "
                    "--method medium --keep 0.7, or use --subset full for all data",
                    parameter="subset",
                )
            return path
        given = Path(subset)
        path = given if given.suffix == ".npz" else self.subset(str(subset))
        if not path.exists():
            raise ConfigError(
                parameter="subset",
                value=subset,
                problem=f"{path} does not exist",
                remedy="Run kdcache select, or name one of its files",
            )
        return path


def teacher_name(teacher: str) -> str:
    """Return the name of a teacher's store.

    `a/b/r50.safetensors` becomes `r50`, `package.module:callable` becomes `callable`,
    `timm:resnet18` becomes `timm-resnet18`, `timm:hf-hub:owner/model` `timm-owner-model`, and an
    ensemble of two, `A+B`, that of their names.
    """
    if "+" in teacher and "/" not in teacher:
        return "+".join(map(teacher_name, teacher.split("+")))
    if teacher.startswith("timm:"):
        source, _, name = teacher.rpartition(":")
        name = Path(name).name if source.endswith("local-dir") else name.replace("/", "-")
        return f"timm-{name}"
    if ":" in teacher:
        return teacher.rpartition(":")[2]
    return Path(teacher).stem if teacher.endswith(".safetensors") else Path(teacher).name

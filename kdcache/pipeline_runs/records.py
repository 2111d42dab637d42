"""What each stage of a recipe was made with, and what it came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.files import differences, read_json, write_json
from kdcache.pipeline_runs.signatures import signature


class Records:
    """What each stage of a recipe was made with when it last ran.

    Args:
        path: of the JSON file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_json(path) if path.exists() else {}

    def reason_to_run(self, name: str, asked: dict[str, Any]) -> str | None:
        """Return why a stage has to run, None where it is up to date."""
        record = self._content.get(name)
        if record is None:
            return "for the first time"
        found = record["asked"]
        for part in ("command", "kdcache"):
            if differ := differences(found, {part: asked[part]}):
                return differ
        for part, said in (("options", "other options"), ("inputs", "another input")):
            keys = sorted(found[part].keys() | asked[part].keys())
            both = {key: found[part].get(key) for key in keys}
            wanted = {key: asked[part].get(key) for key in keys}
            changed = [key for key in keys if both[key] != wanted[key]]
            if changed and part == "inputs":
                return f"{said}: {', '.join(changed)} is not as it was"
            if changed:
                return f"{said}: {differences(both, {key: wanted[key] for key in changed})}"
        if "result" not in record:
            return "it was begun and not finished"
        for path, stamp in record["outputs"].items():
            if _as_path(path) != stamp:
                return f"{path} is gone or was changed since"
        return None

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of a stage that is up to date."""
        result: dict[str, Any] = self._content[name]["result"]
        return result

    def was_ever_finished(self, name: str) -> bool:
        """Return whether the stage has run to its end before."""
        return bool(self._content.get(name, {}).get("was_made"))

    def is_unfinished(self, name: str, asked: dict[str, Any]) -> bool:
        """Return whether the stage was begun with the same, and not finished."""
        record = self._content.get(name, {})
        return record.get("asked") == asked and "result" not in record

    def begun(self, name: str) -> list[str]:
        """Return the run folders that there were when the stage was begun."""
        runs: list[str] = self._content[name].get("runs_before", [])
        return runs

    def begin(self, name: str, asked: dict[str, Any], runs_before: list[str]) -> None:
        """Note that a stage is being made."""
        kept = self.begun(name) if self.is_unfinished(name, asked) else runs_before
        self._content[name] = {
            "asked": asked,
            "runs_before": kept,
            "was_made": self.was_ever_finished(name),
        }
        write_json(self._path, self._content)

    def finish(
        self, name: str, asked: dict[str, Any], result: dict[str, Any], outputs: dict[str, Any]
    ) -> None:
        """Note what a stage came to."""
        self._content[name] = {
            "asked": asked,
            "result": result,
            "outputs": outputs,
            "was_made": True,
        }
        write_json(self._path, self._content)


def _as_path(path: str) -> Any:
    return signature(path if "://" in path else Path(path))

"""The record of each step of a pipeline: its dependencies when it last ran, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.identity import differences
from kdcache.pipeline_runs.signatures import signature
from kdcache.seals import read_sealed_json, write_sealed_json


class Records:
    """The dependencies and results of a pipeline's steps, in one JSON file.

    Args:
        path: the JSON file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = (
            read_sealed_json(path, remedy=f"Remove it: rm {path}") if path.exists() else {}
        )

    def reason_to_run(self, name: str, dependencies: dict[str, Any]) -> str | None:
        """Return why a step has to run, or None if it is up to date."""
        record = self._content.get(name)
        if record is None:
            return "for the first time"
        found = record["asked"]
        for part in ("command", "kdcache"):
            if differ := differences(found, {part: dependencies[part]}):
                return differ
        for part, label in (("options", "other options"), ("inputs", "another input")):
            keys = sorted(found[part].keys() | dependencies[part].keys())
            both = {key: found[part].get(key) for key in keys}
            wanted = {key: dependencies[part].get(key) for key in keys}
            changed = [key for key in keys if both[key] != wanted[key]]
            if changed and part == "inputs":
                return f"{label}: {', '.join(changed)} has changed"
            if changed:
                return f"{label}: {differences(both, {key: wanted[key] for key in changed})}"
        if "result" not in record:
            return "it started and did not finish"
        for path, stamp in record["outputs"].items():
            if _signature_at(path) != stamp:
                return f"{path} is missing or has changed"
        return None

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of a step that is up to date."""
        result: dict[str, Any] = self._content[name]["result"]
        return result

    def was_ever_finished(self, name: str) -> bool:
        """Return whether the step has finished at least once."""
        return bool(self._content.get(name, {}).get("was_made"))

    def is_unfinished(self, name: str, dependencies: dict[str, Any]) -> bool:
        """Return whether the step started with the same dependencies and has not finished."""
        record = self._content.get(name, {})
        return record.get("asked") == dependencies and "result" not in record

    def runs_before(self, name: str) -> list[str]:
        """Return the run folders that existed when the step started."""
        runs: list[str] = self._content[name].get("runs_before", [])
        return runs

    def begin(self, name: str, dependencies: dict[str, Any], runs_before: list[str]) -> None:
        """Record that a step starts."""
        kept = self.runs_before(name) if self.is_unfinished(name, dependencies) else runs_before
        self._content[name] = {
            "asked": dependencies,
            "runs_before": kept,
            "was_made": self.was_ever_finished(name),
        }
        write_sealed_json(self._path, self._content)

    def finish(
        self,
        name: str,
        dependencies: dict[str, Any],
        result: dict[str, Any],
        outputs: dict[str, Any],
    ) -> None:
        """Record the result and the outputs of a step that finished."""
        self._content[name] = {
            "asked": dependencies,
            "result": result,
            "outputs": outputs,
            "was_made": True,
        }
        write_sealed_json(self._path, self._content)


def _signature_at(path: str) -> Any:
    return signature(path if "://" in path else Path(path))

"""`kdcache doctor`: run every group of checks, each in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdcache.checkup.finding import Finding
from kdcache.checkup.isolation import findings_of
from kdcache.options import DoctorOptions
from kdcache.progress import logger
from kdcache.results import JSON, Result


class Group(NamedTuple):
    """Checks that run in one process."""

    title: str
    function: str
    """`module:name` of `function(workspace) -> Iterator[Finding]`."""
    remedy: str
    """What to do if the process itself fails, in a way that no check expects."""


_REINSTALL = "pip install --force-reinstall --no-cache-dir"

GROUPS = (
    Group(
        "machine",
        "kdcache.checkup.machine:check_machine",
        "raise the limits of this shell or container (ulimit -a)",
    ),
    Group(
        "workspace",
        "kdcache.checkup.workspace:check_workspace",
        "choose another folder: --workspace FOLDER",
    ),
    Group(
        "torch",
        "kdcache.checkup.torch_pair:check_torch",
        f"{_REINSTALL} torch torchvision",
    ),
    Group(
        "compiler",
        "kdcache.checkup.compiler:check_compiler",
        f"{_REINSTALL} numba llvmlite",
    ),
    Group(
        "decoder",
        "kdcache.checkup.decoder:check_decoder",
        "install the Debian packages that the README names for FFCV, then "
        f"{_REINSTALL} --no-binary ffcv ffcv",
    ),
    Group(
        "packages",
        "kdcache.checkup.packages:check_packages",
        f"{_REINSTALL} zarr safetensors scikit-learn",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DoctorResult(Result):
    """The findings of `doctor`."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep kdcache from working on this machine."""
        return tuple(one for one in self.findings if one.level == "error")

    @property
    def is_failure(self) -> bool:
        """True if there is an error."""
        return bool(self.errors)

    def to_json(self) -> dict[str, JSON]:
        """Return `error`, `note` and `ok`, each with `found` and `remedy` by check."""
        return {
            level: {
                one.check: {"found": one.found}
                | ({} if one.remedy is None else {"remedy": one.remedy})
                for one in self.findings
                if one.level == level
            }
            for level in ("error", "note", "ok")
        }


def doctor(options: DoctorOptions) -> DoctorResult:
    """Do on a small scale what kdcache does, and report what fails."""
    workspace = Path(options.workspace).absolute()
    findings: list[Finding] = []
    for group in GROUPS:
        logger.info("checking: %s", group.title)
        findings += findings_of(group.function, workspace, group.title, group.remedy)
    return DoctorResult(findings=tuple(findings))

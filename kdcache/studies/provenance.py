"""The origin of a row: the package, its formats, the machine, and the machine's other load."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from kdcache import __version__

_PACKAGE = Path(__file__).parents[1]

MAX_OTHER_LOAD = 0.05
"""Largest load by other processes, in cores, at which a wall time is recorded."""


@lru_cache
def package_digest() -> str:
    """Return the sha256 over the paths and contents of the installed package's source files."""
    content = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content.update(f"{path.relative_to(_PACKAGE)}\n".encode())
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()


@lru_cache
def wheel_digest() -> str | None:
    """Return the sha256 of the installed wheel, if pip recorded it."""
    try:
        recorded = distribution("kdcache").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if recorded is None:
        return None
    archive = json.loads(recorded).get("archive_info", {})
    found: str | None = archive.get("hashes", {}).get("sha256")
    return found


@lru_cache
def checkout_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, with `-dirty` if modified."""
    if not (_PACKAGE.parent / ".git").exists():
        return None

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(_PACKAGE.parent), *words]
        try:
            done = subprocess.run(  # noqa: S603  (the arguments are constants)
                command, capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if git("status", "--porcelain", "--", "kdcache") else commit


def package_about() -> dict[str, str | None]:
    """Return the columns of a row that describe the package: version, digests and formats."""
    from kdcache.data.beton_manifest import FORMAT_VERSION as BETON_VERSION
    from kdcache.store.manifest import FORMAT_VERSION as STORE_VERSION

    return {
        "version": __version__,
        "package_digest": package_digest(),
        "wheel_digest": wheel_digest(),
        "formats": f"beton {BETON_VERSION}, store {STORE_VERSION}",
    }


@lru_cache
def processor() -> str:
    """Return the processor's model and number of cores, from the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


class BusySeconds(NamedTuple):
    """Processor seconds that the whole machine has used since it started."""

    busy: float | None
    """None if the kernel does not report it."""

    @classmethod
    def now(cls) -> BusySeconds:
        """Read the kernel's counters."""
        try:
            first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        except OSError:
            return cls(None)
        user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, first.split()[1:9])
        ticks = user + nice + system + irq + soft_irq + steal
        return cls(ticks / os.sysconf("SC_CLK_TCK"))

    def was_alone(self, *, since: BusySeconds, own_seconds: float, wall_seconds: float) -> bool:
        """Return whether other processes used at most MAX_OTHER_LOAD of a core.

        Args:
            since: the counters at the start of the measured process.
            own_seconds: processor seconds of the measured process.
            wall_seconds: wall time since the start.
        """
        if self.busy is None or since.busy is None:
            return False
        others = self.busy - since.busy - own_seconds
        return others <= MAX_OTHER_LOAD * wall_seconds

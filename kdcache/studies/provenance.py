"""Where a row comes from: the package, its formats, the machine, and whether it was alone."""

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

MAX_FOREIGN_SHARE = 0.05
"""Of one core: where other processes took more, a wall time tells of them too, and is not kept."""


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
    """Return the sha256 of the wheel that was installed, where pip noted it."""
    try:
        noted = distribution("kdcache").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if noted is None:
        return None
    archive = json.loads(noted).get("archive_info", {})
    found: str | None = archive.get("hashes", {}).get("sha256")
    return found


@lru_cache
def checkout_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, `-dirty` if it was changed."""
    if not (_PACKAGE.parent / ".git").exists():
        return None

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(_PACKAGE.parent), *words]
        try:
            done = subprocess.run(  # noqa: S603  (the words stand above)
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
    """Return what a row says of the package: version, digests, formats."""
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
    """Return the processor's model, as the kernel calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


class BusySeconds(NamedTuple):
    """Processor seconds that the whole machine has spent since it started, and the time of day."""

    busy: float | None
    """None where the kernel does not tell."""

    @classmethod
    def now(cls) -> BusySeconds:
        """Look at the kernel's counters."""
        try:
            first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        except OSError:
            return cls(None)
        user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, first.split()[1:9])
        ticks = user + nice + system + irq + soft_irq + steal
        return cls(ticks / os.sysconf("SC_CLK_TCK"))

    def was_alone(self, *, since: BusySeconds, own_seconds: float, wall_seconds: float) -> bool:
        """Return whether other processes took no more than MAX_FOREIGN_SHARE of a core.

        Args:
            since: of the beginning.
            own_seconds: processor seconds of the process in question.
            wall_seconds: from the beginning to now.
        """
        if self.busy is None or since.busy is None:
            return False
        foreign = self.busy - since.busy - own_seconds
        return foreign <= MAX_FOREIGN_SHARE * wall_seconds

"""All tests, once, against kdcache as a user installs it: from a wheel, outside the checkout.

    python packaging/test_all.py                  # everything
    python packaging/test_all.py default faults   # some parts: see PARTS

The sdist is built from the checkout, and the wheel from the sdist. The wheel and its dependencies
are installed side by side into a new environment, as pip does it. A copy of the tests runs there.
An editable install would hide what the wheel lacks, and what goes wrong beside other packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from prerequisites import environment

CHECKOUT = Path(__file__).resolve().parents[1]
BESIDE_THE_TESTS = (
    "benchmarks",
    "examples",
    "packaging",
    "pipelines",
    "pyproject.toml",
    "Makefile",
    "README.md",
)
"""What tests read of the checkout. The package itself stays behind."""

SECOND_PYTHONS = ("3.13", "3.12", "3.11")
"""The first of these that is installed, and is not the one that runs this, repeats some tests."""


class Part(NamedTuple):
    """A part of the tests."""

    markers: str
    """An expression for `pytest -m`."""
    minutes: int
    """Its share of the time that all parts may take on two cores."""
    paths: tuple[str, ...] = ("tests",)
    second_python: bool = False


PARTS = {
    "default": Part("not (faults or processes or long)", 10),
    "faults": Part("faults", 10),
    "processes": Part("processes", 6),
    "long": Part("long", 9),
    "second-python": Part(
        "not (faults or processes or long)", 5, ("tests/store", "tests/reader"), second_python=True
    ),
}

WALK = (
    ("doctor",),
    ("pack", "digits"),
    ("train-teacher", "--model", "resnet20", "--epochs", "1"),
    ("build-logits", "--teacher", "resnet20", "--views", "2"),
    ("select", "--method", "medium", "--keep", "0.7"),
    ("train", "--epochs", "1"),
    ("evaluate",),
    ("verify",),
    ("run", "short.toml"),
    ("run", "digits", "--dry-run"),
)

RECIPE = """
[[stage]]
run = "pack"
source = "digits"

[[stage]]
run = "select"
method = "random"

[[stage]]
run = "train"
subset = "random-0.7"
epochs = 1
"""


def build(folder: Path) -> Path:
    """Build the sdist, and the wheel from it; return the wheel.

    Exits with a message where the wheel does not hold exactly the checkout's files.
    """
    run([uv(), "build", "--quiet", "--out-dir", folder, CHECKOUT], settings=settings())
    (wheel,) = folder.glob("*.whl")
    tracked = run(
        ["git", "ls-files", "kdcache", "pipelines"], cwd=CHECKOUT, stdout=subprocess.PIPE
    ).stdout.split()
    expected = {
        name.replace("pipelines/", "kdcache/pipelines/", 1) if name.startswith("pipe") else name
        for name in tracked
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if found != expected:
        sys.exit(
            f"{wheel.name} differs from the checkout: missing {sorted(expected - found)}, "
            f"not tracked {sorted(found - expected)}. See [tool.setuptools] in pyproject.toml"
        )
    return wheel


def install(wheel: Path, folder: Path, python: str) -> Path:
    """Make an environment with the wheel and all that its tests need; return its interpreter."""
    run([uv(), "venv", "--quiet", "--no-python-downloads", "--python", python, folder])
    interpreter = folder / "bin" / "python"
    wanted = [f"{wheel}[dev]", "opencv-python-headless"]  # as the Makefile does
    run(
        [uv(), "pip", "install", "--quiet", "--python", interpreter, *wanted],
        cwd=CHECKOUT,  # for [tool.uv] in its pyproject.toml
        settings=settings(),
    )
    return interpreter


def walk(interpreter: Path, folder: Path) -> None:
    """Take the whole way on the digits, with the installed command, in an empty folder."""
    folder.mkdir()
    (folder / "short.toml").write_text(RECIPE, encoding="utf-8")
    for words in WALK:
        print("$ kdcache", *words, flush=True)
        run([interpreter.with_name("kdcache"), *words, "--quiet"], cwd=folder)


def test(interpreter: Path, copy: Path, part: Part) -> int:
    """Run a part of the tests; return pytest's status."""
    data = CHECKOUT.parent / "shared" / "data"
    known = {"KDCACHE_TEST_DATA": str(data)} if data.is_dir() else {}
    return subprocess.run(
        [
            *(interpreter, "-m", "pytest", "--numprocesses", "2", "--dist", "loadfile"),
            *("-m", part.markers, *part.paths),
        ],
        cwd=copy,
        env=known | os.environ | {"KDCACHE_TEST_INSTALLED": "1"},
        check=False,
    ).returncode


def second_python() -> str | None:
    """Return another supported interpreter of this machine, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in SECOND_PYTHONS:
        if version == "{}.{}".format(*sys.version_info):
            continue
        candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
        for candidate in filter(None, candidates):
            works = [candidate, "-c", "import ensurepip"]  # pyenv's shims may lead nowhere
            if subprocess.run(works, capture_output=True, check=False).returncode == 0:
                return str(candidate)
    return None


def uv() -> Path:
    """Return uv, which lies beside the interpreter that runs this."""
    return Path(sys.executable).with_name("uv")


def settings() -> dict[str, str]:
    """Return the environment in which FFCV is compiled."""
    return environment(CHECKOUT / ".venv-system")


def run(
    command: list[str | Path],
    *,
    cwd: Path | None = None,
    settings: dict[str, str] | None = None,
    stdout: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command; exit with its status where it fails."""
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=settings, stdout=stdout, text=True, check=False
    )
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with status {process.returncode}")
    return process


def main() -> None:
    """Build, install, take the walk, test; exit with 1 where a part failed."""
    names = sys.argv[1:] or list(PARTS)
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        sys.exit(f"parts {', '.join(unknown)} do not exist, expected some of {', '.join(PARTS)}")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="kdcache-tests-") as temporary:
        folder = Path(temporary)
        wheel = build(folder / "dist")
        copy = folder / "copy"
        for name in ("tests", *BESIDE_THE_TESTS):
            source, target = CHECKOUT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        interpreter = install(wheel, folder / "environment", sys.executable)
        walk(interpreter, folder / "walk")
        for name in names:
            part, started = PARTS[name], time.monotonic()
            used = interpreter
            if part.second_python:
                other = second_python()
                if other is None:
                    outcomes.append(
                        f"{name:14} no other Python of {', '.join(SECOND_PYTHONS)} here"
                    )
                    continue
                used = install(wheel, folder / "second-environment", other)
            status = test(used, copy, part)
            minutes = (time.monotonic() - started) / 60
            outcome = "FAILED" if status else "passed"
            outcomes.append(f"{name:14} {outcome} in {minutes:.1f} of {part.minutes} minutes")
    print("\n".join(["", *outcomes]))
    sys.exit(any("FAILED" in outcome for outcome in outcomes))


if __name__ == "__main__":
    main()

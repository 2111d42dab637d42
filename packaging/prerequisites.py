"""What FFCV is compiled with: check it, and install it on Debian and Ubuntu, with or without root.

FFCV has no wheels. pip compiles it, and where a library is missing its message is a page of
compiler output. So kdcache's build backend and the Makefile check this first.

    python packaging/prerequisites.py check              # exit status 0, or 1 and what to do
    python packaging/prerequisites.py install PREFIX     # apt-get as root; else unpack into PREFIX
    python packaging/prerequisites.py environment PREFIX # settings to compile with, for a shell

Only the standard library is used, because nothing is installed yet when this runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

OPENCV = Path(__file__).resolve().parent / "opencv"
"""Folder of the opencv4.pc that names only what FFCV uses."""

LIBRARIES = ("libturbojpeg0-dev", "libopencv-core-dev", "libopencv-imgproc-dev")
TOOLS = ("build-essential", "pkg-config", "python3-dev", "python3-venv")

SOURCE = """
#include <Python.h>
#include <turbojpeg.h>
#include <opencv2/opencv.hpp>
int main() {
    cv::Mat from(2, 2, CV_8UC3), to(1, 1, CV_8UC3);
    cv::resize(from, to, to.size(), 0, 0, cv::INTER_AREA);
    return tjDestroy(tjInitDecompress());
}
"""
"""It uses what FFCV uses."""


def problem(environment: dict[str, str]) -> str | None:
    """Return what is missing to compile FFCV, or None.

    Args:
        environment: of the compiler and of pkg-config.
    """
    return missing_tool(environment) or missing_library(environment)


def missing_tool(environment: dict[str, str]) -> str | None:
    """Return which of the compiler, pkg-config and Python's headers is missing, or None."""
    compiler = _compiler(environment)[0]
    for tool, meaning in ((compiler, "a C++ compiler"), ("pkg-config", "pkg-config")):
        if shutil.which(tool, path=environment.get("PATH")) is None:
            return f"{meaning} ({tool} is not on the PATH)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.is_file() else f"Python's header file ({header})"


def missing_library(environment: dict[str, str]) -> str | None:
    """Compile and link what FFCV uses; return what that lacks, or None."""
    flags = []
    for module in ("opencv4", "libturbojpeg"):
        answer = _run(["pkg-config", "--cflags", "--libs", module], environment)
        if answer.returncode != 0:
            return f"{module}.pc (pkg-config does not find it)"
        flags += shlex.split(answer.stdout)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "uses.cpp")
        source.write_text(SOURCE, encoding="ascii")
        headers = f"-I{sysconfig.get_path('include')}"
        link = [*shlex.split(environment.get("LDFLAGS", "")), *flags]
        built = _run(
            [*_compiler(environment), headers, *flags, str(source), "-o", f"{folder}/uses", *link],
            environment,
        )
    if built.returncode == 0:
        return None
    lines = built.stderr.splitlines() or ["the compiler's output is empty"]
    errors = [line for line in lines if "error" in line or "cannot find" in line]
    return (errors or lines)[0].strip()


def environment(prefix: Path) -> dict[str, str]:
    """Return this process's environment with the settings that FFCV is compiled with.

    Libraries that `install` unpacked into the prefix are found there when compiling, and, by a path
    inside the compiled file, when it is loaded.
    """
    settings = dict(os.environ)

    def put_first(name: str, *paths: Path) -> None:
        given = settings.get(name)
        settings[name] = os.pathsep.join([*map(str, paths), *([given] if given else [])])

    put_first("PKG_CONFIG_PATH", OPENCV)
    if prefix.is_dir():
        (libraries,) = prefix.glob("usr/lib/*-linux-gnu")
        folders = [libraries, libraries / "blas", libraries / "lapack"]
        put_first("CPATH", prefix / "usr/include", prefix / "usr/include/opencv4")
        put_first("LIBRARY_PATH", *folders)
        put_first("PKG_CONFIG_PATH", libraries / "pkgconfig")
        # DT_RPATH, and not DT_RUNPATH, which would not hold for the libraries' own libraries.
        path = os.pathsep.join(map(str, folders))
        given = settings.get("LDFLAGS", "")
        settings["LDFLAGS"] = f"{given} -Wl,--disable-new-dtags,-rpath,{path}".strip()
    return settings


def advice(missing: str) -> str:
    """Return the message that says what is missing and which line to run."""
    debian = " ".join((*TOOLS, *LIBRARIES))
    return (
        f"kdcache needs FFCV, which is compiled when it is installed, and {missing} is missing.\n"
        "Run one of these, then install again:\n"
        f"    Debian, Ubuntu:  sudo apt-get install --yes --no-install-recommends {debian}\n"
        f"                     export PKG_CONFIG_PATH={shlex.quote(str(OPENCV))}\n"
        "    conda:           conda install --yes --channel conda-forge cxx-compiler pkg-config"
        " libopencv libjpeg-turbo\n"
        '    without root:    README.md, section "Installation"'
    )


def install(prefix: Path) -> str | None:
    """Install what is missing from Debian's packages; return a message where that is impossible.

    Root gets the packages by apt-get. For others the libraries are unpacked into the prefix; the
    compiler is not, because it would not work there.
    """
    missing = problem(environment(prefix))
    if missing is None:
        return None
    if shutil.which("apt-get") is None:
        return advice(missing)
    if os.geteuid() == 0:
        print("Installing Debian packages:", *TOOLS, *LIBRARIES, file=sys.stderr)
        settings = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        get = ["apt-get", "--quiet=2", "--yes", "--no-install-recommends"]
        for command in (["apt-get", "--quiet=2", "update"], [*get, "install", *TOOLS, *LIBRARIES]):
            subprocess.run(command, env=settings, stdout=subprocess.DEVNULL, check=True)
    else:
        tool = missing_tool(dict(os.environ))
        if tool is not None:
            return advice(tool)
        print(f"Unpacking Debian packages into {prefix}", file=sys.stderr)
        unpack(prefix)
    missing = problem(environment(prefix))
    return None if missing is None else advice(missing)


def unpack(prefix: Path) -> None:
    """Download the libraries' Debian packages, and unpack them into a folder; needs no root."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state")  # of our own: the system's may be old, or missing
        (state / "lists" / "partial").mkdir(parents=True)
        options = ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state}"]
        _must(["apt-get", "--quiet=2", *options, "update"], folder)
        depends = ["apt-cache", *options, "depends", "--recurse", "--no-recommends"]
        depends += [
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
            "--no-enhances",
        ]
        names = {
            line
            for line in _must([*depends, *LIBRARIES], folder).splitlines()
            if line and not line.startswith((" ", "<", "|"))
        }
        policy = _must(
            ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"], folder
        )
        there = {line.split()[0] for line in policy.splitlines() if line.endswith(" installed")}
        _must(["apt-get", "--quiet=2", *options, "download", *sorted(names - there)], folder)
        prefix.mkdir(parents=True, exist_ok=True)
        for package in sorted(Path(folder).glob("*.deb")):
            _must(["dpkg", "--extract", str(package), str(prefix)], folder)


def _compiler(environment: dict[str, str]) -> list[str]:
    return shlex.split(environment.get("CXX", "g++"))


def _must(command: list[str], folder: str) -> str:
    process = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed:\n{process.stderr}")
    return process.stdout


def _run(command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def main() -> None:
    """Run what the words say."""
    match sys.argv[1:]:
        case ["check"]:
            missing = problem(dict(os.environ))
            message = None if missing is None else advice(missing)
        case ["install", prefix]:
            message = install(Path(prefix).absolute())
        case ["environment", prefix]:
            settings = environment(Path(prefix).absolute())
            for name in ("PKG_CONFIG_PATH", "CPATH", "LIBRARY_PATH", "LDFLAGS"):
                if name in settings:
                    print(f"export {name}={shlex.quote(settings[name])}")
            message = None
        case _:
            message = __doc__
    sys.exit(message)


if __name__ == "__main__":
    main()

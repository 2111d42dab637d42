"""A group of checks that crashes, hangs or prints is reported in one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kdcache.checkup.finding import Finding, ok
from kdcache.checkup.isolation import findings_of

BEFORE = ok("before", "it works")


def prints_much(workspace: Path) -> Iterator[Finding]:
    print('{"level": "ok"}')  # noqa: T201
    os.write(1, b"of a C library\n")
    yield ok("workspace", str(workspace))


def aborts(_workspace: Path) -> Iterator[Finding]:
    yield BEFORE
    sys.stderr.write("terminate called after throwing an instance\n")
    sys.stderr.flush()
    os.abort()


def raises(_workspace: Path) -> Iterator[Finding]:
    yield BEFORE
    raise ZeroDivisionError("a fault of ours\nin two lines")


def hangs(_workspace: Path) -> Iterator[Finding]:
    yield BEFORE
    time.sleep(3600)


def found(function: object, *, timeout: float = 200) -> list[Finding]:
    name = f"{__name__}:{function.__name__}"
    return list(findings_of(name, Path("/w"), "title", "do this", timeout=timeout))


def test_other_output_of_a_check_is_dropped(capfd):
    assert found(prints_much) == [ok("workspace", "/w")]
    assert capfd.readouterr() == ("", "")


def test_a_crash_is_an_error_and_earlier_findings_are_kept(capfd):
    before, crash = found(aborts)
    assert before == BEFORE
    assert (crash.level, crash.check, crash.remedy) == ("error", "title", "do this")
    assert "signal 6 (Aborted)" in crash.found
    assert crash.found.endswith("terminate called after throwing an instance")
    assert capfd.readouterr() == ("", "")


def test_an_exception_is_an_error_in_one_line(capfd):
    before, fault = found(raises)
    assert before == BEFORE
    assert "\n" not in fault.found
    assert "status 1" in fault.found
    assert capfd.readouterr() == ("", "")


def test_a_module_that_cannot_be_loaded_is_an_error():
    (fault,) = findings_of("kdcache.checkup.nothing:at_all", Path("/w"), "title", "do this")
    assert "ModuleNotFoundError: No module named 'kdcache.checkup.nothing'" in fault.found


def test_a_check_that_exceeds_the_timeout_is_an_error():
    assert found(hangs, timeout=1)[-1].found == "no answer after 1 seconds"


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (fault,) = found(prints_much)
    assert "no process can be started: FileNotFoundError" in fault.found

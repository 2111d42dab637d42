"""The runner does work in order, with real processes that end well, badly, late or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import TrainingError
from kdcache.locks import file_lock
from kdcache.studies.processes import ProcessResult
from kdcache.studies.runner import Runner, Work


class WorkFolder:
    """A folder in which pieces of work write files, and a list of what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[str] = []

    def piece(self, name: str, code: str = "", after: tuple[str, ...] = ()) -> Work:
        """Return work that runs some Python and then makes the file of its name."""
        file = self.folder / name

        def finish(_: ProcessResult | None) -> str:
            self.events.append(name)
            return "made"

        return Work(
            key=name,
            what=f"the {name}",
            is_done=file.exists,
            after=after,
            command=lambda: [sys.executable, "-c", f"{code}\nopen({str(file)!r}, 'w')"],
            finish=finish,
            fail=lambda message: self.events.append(f"{name}: {message}"),
        )

    def run(self, *work: Work, jobs: int = 1, deadline: float | None = None) -> dict[str, Any]:
        """Run the pieces."""
        return Runner(work, self.folder / "runner", jobs=jobs, deadline=deadline).run()


@pytest.fixture
def work_folder(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path)


def test_work_runs_in_order_and_after_its_needs(work_folder):
    work = [
        work_folder.piece("store"),
        work_folder.piece("one", after=("store",)),
        work_folder.piece("two"),
    ]
    found = work_folder.run(*work)
    assert work_folder.events == ["store", "one", "two"]
    assert found == {"done": ["one", "store", "two"], "failed": {}, "stopped": False}
    assert work_folder.run(*work)["done"] == ["one", "store", "two"]
    assert len(work_folder.events) == 3  # what is there is not made again


def test_a_failure_is_recorded_and_dependent_work_is_skipped(work_folder):
    fails = "import sys; sys.stderr.write('kdcache: no such thing\\n'); sys.exit(2)"
    killed = "import os; os.kill(os.getpid(), 9)"
    found = work_folder.run(
        work_folder.piece("store", fails),
        work_folder.piece("one", after=("store",)),
        work_folder.piece("two", killed),
        work_folder.piece("three", "raise ValueError('odd')"),
        work_folder.piece("four"),
    )
    assert found["done"] == ["four"]
    assert work_folder.events == [
        "store: no such thing",
        "one: the store could not be made: no such thing",
        "two: it was killed by SIGKILL",
        "three: ValueError: odd",
        "four",
    ]


def meet(folder: Path, name: str, other: str) -> str:
    """Return code that ends only while the other runs, too."""
    return (
        f"import pathlib, time\npathlib.Path({str(folder / name)!r} + '.here').touch()\n"
        f"while not pathlib.Path({str(folder / other)!r} + '.here').exists(): time.sleep(0.01)"
    )


def test_several_jobs_run_at_once(work_folder):
    work = [
        work_folder.piece("a", meet(work_folder.folder, "a", "b")),
        work_folder.piece("b", meet(work_folder.folder, "b", "a")),
    ]
    assert work_folder.run(*work, jobs=2)["done"] == ["a", "b"]


def test_at_the_deadline_all_processes_stop_and_nothing_is_recorded(work_folder):
    endless = "import time\nwhile True: time.sleep(1)"
    found = work_folder.run(
        work_folder.piece("a", endless), work_folder.piece("b"), deadline=time.time() + 1
    )
    assert found == {"done": [], "failed": {}, "stopped": True}
    assert work_folder.events == []
    assert work_folder.run(work_folder.piece("a"), work_folder.piece("b"))["done"] == ["a", "b"]


def test_a_full_disk_stops_the_runner_and_records_no_failure(work_folder):
    full = "raise OSError(28, 'No space left on device')"
    with pytest.raises(TrainingError, match=r"the a: .*No space left on device.* Free some space"):
        work_folder.run(work_folder.piece("a", full), work_folder.piece("b"))
    assert work_folder.events == []


def test_work_that_another_process_does_is_awaited_not_repeated(work_folder):
    work = [work_folder.piece("a"), work_folder.piece("b")]
    with file_lock(work_folder.folder / "runner/locks/a.lock", purpose="test"):
        assert work_folder.run(*work, deadline=time.time() + 2)["stopped"]
    assert work_folder.events == ["b"]
    (work_folder.folder / "a").touch()
    assert work_folder.run(*work)["done"] == ["a", "b"]
    assert work_folder.events == ["b"]


def test_a_process_keeps_its_lock_after_its_runner_is_killed(work_folder, tmp_path):
    """Its runner is killed; the next one waits for the process instead of beginning beside it."""
    begun, end, runner = tmp_path / "begun", tmp_path / "end", tmp_path / "runner.py"
    waits = (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(end)!r}).exists(): time.sleep(0.01)"
    )
    runner.write_text(
        "import sys; from pathlib import Path; from tests.studies.test_runner import WorkFolder\n"
        f"folder = WorkFolder(Path({str(tmp_path)!r}))\n"
        f"folder.run(folder.piece('a', {waits!r}))\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    first = subprocess.Popen([sys.executable, str(runner)], cwd=root, env=environment)
    while not begun.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert work_folder.run(work_folder.piece("a"), deadline=time.time() + 1)["stopped"]
    end.touch()
    assert work_folder.run(work_folder.piece("a"))["done"] == ["a"]
    assert work_folder.events == []


def test_stopping_ends_every_process_also_beside_one_that_has_just_ended(work_folder, tmp_path):
    """One process ends between the last look at it and the stop; the other must not outlive it."""
    running = tmp_path / "running"

    def interrupt_when_both_have_started() -> bool:
        while not running.exists():
            time.sleep(0.01)
        time.sleep(1)  # until the process of `brief` has ended
        raise KeyboardInterrupt

    brief = work_folder.piece("brief")
    endless = work_folder.piece(
        "endless",
        f"import os, pathlib, time\npathlib.Path({str(running)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)",
    )
    interrupts = replace(
        work_folder.piece("interrupts"), is_done=interrupt_when_both_have_started, command=None
    )
    with pytest.raises(KeyboardInterrupt):
        work_folder.run(brief, endless, interrupts, jobs=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)

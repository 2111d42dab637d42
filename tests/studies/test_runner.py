"""The runner does work in order, with real processes that end well, badly, late or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import TrainingError
from kdcache.locks import file_lock
from kdcache.studies.processes import Ended
from kdcache.studies.runner import Runner, Work


class Yard:
    """A folder in which pieces of work write files, and a diary of what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.diary: list[str] = []

    def piece(self, name: str, code: str = "", after: tuple[str, ...] = ()) -> Work:
        """Return work that runs some Python and then makes the file of its name."""
        file = self.folder / name

        def finish(_: Ended | None) -> str:
            self.diary.append(name)
            return "made"

        return Work(
            key=name,
            what=f"the {name}",
            is_done=file.exists,
            after=after,
            command=lambda: [sys.executable, "-c", f"{code}\nopen({str(file)!r}, 'w')"],
            finish=finish,
            fail=lambda message: self.diary.append(f"{name}: {message}"),
        )

    def run(self, *work: Work, jobs: int = 1, deadline: float | None = None) -> dict[str, Any]:
        """Run the pieces."""
        return Runner(work, self.folder / "runner", jobs=jobs, deadline=deadline).run()


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def test_work_is_done_in_order_after_what_it_needs(yard):
    work = [yard.piece("store"), yard.piece("one", after=("store",)), yard.piece("two")]
    found = yard.run(*work)
    assert yard.diary == ["store", "one", "two"]
    assert found == {"done": ["one", "store", "two"], "failed": {}, "stopped": False}
    assert yard.run(*work)["done"] == ["one", "store", "two"]
    assert len(yard.diary) == 3  # what is there is not made again


def test_a_failure_is_recorded_with_its_message_and_skipped(yard):
    fails = "import sys; sys.stderr.write('kdcache: no such thing\\n'); sys.exit(2)"
    killed = "import os; os.kill(os.getpid(), 9)"
    found = yard.run(
        yard.piece("store", fails),
        yard.piece("one", after=("store",)),
        yard.piece("two", killed),
        yard.piece("three", "raise ValueError('odd')"),
        yard.piece("four"),
    )
    assert found["done"] == ["four"]
    assert yard.diary == [
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


def test_several_run_at_once(yard):
    work = [
        yard.piece("a", meet(yard.folder, "a", "b")),
        yard.piece("b", meet(yard.folder, "b", "a")),
    ]
    assert yard.run(*work, jobs=2)["done"] == ["a", "b"]


def test_at_the_deadline_all_stops_and_nothing_is_recorded(yard):
    endless = "import time\nwhile True: time.sleep(1)"
    found = yard.run(yard.piece("a", endless), yard.piece("b"), deadline=time.time() + 1)
    assert found == {"done": [], "failed": {}, "stopped": True}
    assert yard.diary == []
    assert yard.run(yard.piece("a"), yard.piece("b"))["done"] == ["a", "b"]


def test_a_full_disk_stops_everything_and_fails_nothing(yard):
    full = "raise OSError(28, 'No space left on device')"
    with pytest.raises(TrainingError, match=r"the a: .*No space left on device.* Make space"):
        yard.run(yard.piece("a", full), yard.piece("b"))
    assert yard.diary == []


def test_what_another_process_makes_is_waited_for_and_not_made_again(yard):
    work = [yard.piece("a"), yard.piece("b")]
    with file_lock(yard.folder / "runner/locks/a.lock", purpose="test"):
        assert yard.run(*work, deadline=time.time() + 2)["stopped"]
    assert yard.diary == ["b"]
    (yard.folder / "a").touch()
    assert yard.run(*work)["done"] == ["a", "b"]
    assert yard.diary == ["b"]


def test_a_process_holds_the_lock_of_its_work_when_its_runner_is_gone(yard, tmp_path):
    """Its runner is killed; the next one waits for the process instead of beginning beside it."""
    begun, end, runner = tmp_path / "begun", tmp_path / "end", tmp_path / "runner.py"
    waits = (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(end)!r}).exists(): time.sleep(0.01)"
    )
    runner.write_text(
        "import sys; from pathlib import Path; from tests.studies.test_runner import Yard\n"
        f"yard = Yard(Path({str(tmp_path)!r}))\nyard.run(yard.piece('a', {waits!r}))\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    first = subprocess.Popen([sys.executable, str(runner)], cwd=root, env=environment)
    while not begun.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert yard.run(yard.piece("a"), deadline=time.time() + 1)["stopped"]
    end.touch()
    assert yard.run(yard.piece("a"))["done"] == ["a"]
    assert yard.diary == []

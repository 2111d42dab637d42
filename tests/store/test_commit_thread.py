"""The thread that writes: in order, bounded, and nothing is lost or left running."""

from __future__ import annotations

import threading
import time
import traceback

import numpy as np
import pytest
import torch

from kdcache.store.build.commit_thread import CommitThread
from kdcache.store.build.plan import Shard
from kdcache.store.build.teacher_pass import TeacherOutputs

MANY = 8


def answers(number: int) -> TeacherOutputs:
    shard = Shard(0, number, np.arange(2))
    return TeacherOutputs(
        shard=shard,
        logits=torch.zeros(2, 3),
        labels=torch.zeros(2, dtype=torch.int64),
        view_keys=np.arange(2, dtype=np.uint64),
        features=None,
        wait=lambda: None,
    )


class Disk:
    """Notes which shards it was given; the gate says when it takes one."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.written: list[int] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def commit(self, given: TeacherOutputs) -> None:
        assert self.gate.wait(10)
        self.written.append(given.shard.index)


class FullDisk(Disk):
    """Has room for three shards."""

    def commit(self, given: TeacherOutputs) -> None:
        if given.shard.index == 3:
            raise OSError(28, "No space left on device", "shard 3")
        super().commit(given)


def test_shards_are_committed_in_the_order_in_which_they_were_put():
    disk = Disk()
    with CommitThread(disk.commit, capacity=2) as commits:
        for number in range(MANY):
            commits.put(answers(number))
    assert disk.written == list(range(MANY))


def test_no_more_wait_than_may():
    disk = Disk(is_open=False)
    put = []

    def produce() -> None:
        for number in range(MANY):
            commits.put(answers(number))
            put.append(number)

    with CommitThread(disk.commit, capacity=2) as commits:
        producer = threading.Thread(target=produce)
        producer.start()
        deadline = time.monotonic() + 10
        while len(put) < 3:  # one is being written, two wait
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(put) == 3
        disk.gate.set()
        producer.join()
    assert disk.written == list(range(MANY))


@pytest.mark.parametrize("error", [KeyError("forward"), KeyboardInterrupt()])
def test_what_was_answered_is_committed_when_the_teacher_fails(error):
    disk = Disk(is_open=False)

    def fail() -> None:
        with CommitThread(disk.commit, capacity=MANY) as commits:
            for number in range(5):
                commits.put(answers(number))
            disk.gate.set()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert disk.written == [0, 1, 2, 3, 4]


def test_an_error_of_the_thread_ends_the_pass_with_its_traceback():
    disk = FullDisk()
    reached = []

    def produce() -> None:
        with CommitThread(disk.commit, capacity=1) as commits:
            for number in range(1000):
                commits.put(answers(number))
                commits.raise_failure()
                reached.append(number)
                time.sleep(0.001)

    with pytest.raises(OSError, match="No space left") as error:
        produce()
    assert disk.written == [0, 1, 2]  # nothing after the one that failed
    assert len(reached) < 1000
    assert "raise OSError(28" in "".join(traceback.format_exception(error.value))


def test_an_error_of_the_last_shard_is_not_lost():
    disk = FullDisk()

    def produce() -> None:
        with CommitThread(disk.commit, capacity=9) as commits:
            for number in range(4):
                commits.put(answers(number))

    with pytest.raises(OSError, match="shard 3"):
        produce()
    assert disk.written == [0, 1, 2]


def test_nobody_waits_for_room_beside_a_thread_that_has_failed():
    """The one that writes fails while the queue is full and the teacher waits for room."""

    class Failing(Disk):
        def commit(self, given: TeacherOutputs) -> None:
            super().commit(given)
            raise OSError(28, "No space left on device", "shard 0")

    disk = Failing(is_open=False)

    def produce() -> None:
        with CommitThread(disk.commit, capacity=1) as commits:
            threading.Timer(0.1, disk.gate.set).start()
            for number in range(MANY):
                commits.put(answers(number))

    with pytest.raises(OSError, match="shard 0"):
        produce()
    assert disk.written == [0]


def test_an_error_of_both_shows_both():
    disk = FullDisk()

    def produce() -> None:
        with CommitThread(disk.commit, capacity=9) as commits:
            commits.put(answers(3))
            raise KeyError("forward")

    with pytest.raises(OSError, match="shard 3") as error:
        produce()
    assert isinstance(error.value.__context__, KeyError)

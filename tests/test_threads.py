"""The number of threads follows what is faster, and finding out costs little; the clock is fake."""

import random

import pytest
import torch

from cgan_utils.engines import threads
from cgan_utils.engines.threads import Threads, one_thread

QUIET, BUSY = {1: 0.004, 2: 0.0023}, {1: 0.004, 2: 0.014}  # seconds per call
VERY_BUSY, EQUAL = {1: 0.004, 2: 1.0}, {1: 0.004, 2: 0.004}


class Machine:
    """A fake clock, and a function that takes as long as its threads and the neighbour let it."""

    def __init__(self, seconds):
        self.seconds, self.time, self.used = seconds, 0.0, []
        self.call = Threads(clock=lambda: self.time)

    def work(self, threads):
        self.time += self.seconds[threads]
        self.used.append(threads)
        return len(self.used)

    def run(self, seconds):
        """Call for so long; return the threads that were used, and seconds per call."""
        start, count = self.time, len(self.used)
        while self.time < start + seconds:
            self.call(self.work)
        used = self.used[count:]
        return used, (self.time - start) / len(used)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("seconds", [QUIET, BUSY, VERY_BUSY, EQUAL])
def test_it_costs_hardly_more_than_the_better_number(seconds):
    machine = Machine(seconds)
    machine.run(2 * threads.LAP + 2 * seconds[2])  # a first lap with each number
    _, each = machine.run(600)
    assert each <= min(seconds.values()) * (1 + 1.1 * threads.COST)


def test_calls_are_averaged_for_a_neighbour_delays_only_some_of_them():
    rng = random.Random(0)

    class Uneven(Machine):
        def work(self, threads):
            if threads == 2 and rng.random() < 0.25:
                self.time += 0.04
            return super().work(threads)

    machine = Uneven(QUIET)
    machine.run(5)
    used, _ = machine.run(60)
    assert used.count(2) < 0.1 * len(used)


def test_it_follows_a_neighbour_who_comes_and_goes():
    machine = Machine(QUIET)
    assert machine.run(10)[0].count(1) < 0.1 * len(machine.used)
    for _ in range(3):
        machine.seconds = BUSY
        machine.run(threads.PERIOD + 3 * threads.LAP)
        used, each = machine.run(10)
        assert used.count(2) < 0.02 * len(used) and each < 1.03 * BUSY[1]
        machine.seconds = QUIET
        most = (BUSY[2] - BUSY[1]) * 3 / threads.COST  # a trial is three calls of 14 ms
        machine.run(max(most, threads.PERIOD) + 3 * threads.LAP)
        used, each = machine.run(10)
        assert used.count(1) < 0.1 * len(used) and each < 1.03 * QUIET[2]


def test_one_slow_call_does_not_change_the_choice_for_long():
    machine = Machine(QUIET)
    machine.run(5)
    machine.seconds = {1: 0.3, 2: 0.3}
    machine.call(machine.work)  # all slow, once
    machine.seconds = QUIET
    machine.run(threads.PERIOD + 3 * threads.LAP)
    used, _ = machine.run(10)
    assert used.count(1) < 0.1 * len(used)


def test_the_number_of_threads_is_torchs_at_each_call(monkeypatch):
    machine = Machine({1: 0.004, 2: 0.0023, 4: 0.002})
    machine.run(5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert set(machine.run(5)[0]) == {1, 4}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert set(machine.run(5)[0]) == {1}


def test_the_result_is_the_functions_and_an_error_passes():
    machine = Machine(QUIET)
    assert [machine.call(machine.work) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        machine.call(lambda threads: 1 / 0)
    assert machine.call(machine.work) == 4


def test_one_thread_is_torchs_number_for_a_while(monkeypatch):
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    with pytest.raises(ZeroDivisionError), one_thread():
        assert numbers == [1]
        raise ZeroDivisionError
    assert numbers == [1, 2]

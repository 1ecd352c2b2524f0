"""How many threads are fastest at the moment, while other programs come and go."""

import contextlib
import time
from collections.abc import Callable

import torch

LAP = 0.03  # seconds over which calls are averaged
PERIOD = 1.0  # seconds of calls, at least, between two trials of the other number of threads
COST = 0.02  # what all trials cost at most, as a share of the time


class Threads:
    """Call a function with one thread or with all, whichever took less time per call lately.

    Threads that share one computation wait for each other. Where another program uses one core of
    two, one thread alone is therefore faster. The function must return the same with any number.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.use_all, self.on_trial = clock, True, False
        self.calls, self.seconds = 0, 0.0  # of this lap
        self.usual = 0.0  # seconds per call in the last lap that was no trial
        self.until_trial = 0.0  # seconds of calls

    def __call__(self, function: Callable):
        """Return function(threads=n), where n is 1 or torch's number of threads."""
        threads = torch.get_num_threads() if self.use_all else 1
        start = self.clock()
        result = function(threads=threads)
        self.calls += 1
        self.seconds += self.clock() - start
        if self.seconds >= LAP:
            self.end_lap()
            self.calls, self.seconds = 0, 0.0
        return result

    def end_lap(self):
        """End a trial, keeping what was faster, or begin one if it is time."""
        if self.on_trial:
            cost = self.seconds - self.calls * self.usual
            self.on_trial, self.until_trial = False, max(PERIOD, cost / COST)
            if cost > 0:
                self.use_all = not self.use_all
            return
        self.usual = self.seconds / self.calls
        self.until_trial -= self.seconds
        if self.until_trial <= 0:
            self.on_trial, self.use_all = True, not self.use_all


@contextlib.contextmanager
def one_thread():
    """Have PyTorch use one thread for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

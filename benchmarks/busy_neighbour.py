"""What does another busy program cost: a training step, and sampling?

    python benchmarks/busy_neighbour.py            under four minutes on two cores
    python benchmarks/busy_neighbour.py --short    one short round of everything

times the compiled step of each recipe with one thread, with all, and with those that the engine
chooses; and the original recipe's eager step and `cg.sample` with one thread and with all, the
latter also in a second process with OMP_WAIT_POLICY=passive, under which waiting threads sleep. All
take turns, in short rounds; then again beside a neighbour, a process that computes all the time,
which the script starts and ends. Writes results/busy_neighbour.json, or the file that --output
names: the median over the rounds of milliseconds per step (of `sample`: per 1000 images), and the
ratio of the engine's choice to the better of one thread and all.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
import tyro
from quality import machine, write_results
from speed import package_steps
from tqdm import tqdm

import cgan_utils as cg
from cgan_utils.engines import compiled, make_engine

RESULTS = Path(__file__).parent / "results" / "busy_neighbour.json"
POLICIES = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
IMAGES = 1000
LOOPS = {}  # of a worker process: what each side repeats


def sides(policy):
    """Return what is timed under a policy: (recipe, what, number of threads)."""
    slow = [("original", what, "all") for what in ("eager", "sample")]
    if policy == "passive":
        return slow  # the compiled step's threads sleep in any case, and one waits for nobody
    slow += [("original", what, "one") for what in ("eager", "sample")]
    choices = itertools.product(cg.CGANConfig.recipes, ["compiled"], ["one", "all", "chosen"])
    return [*choices, *slow]


def start_worker(policy):
    """Make a step of each side ready to be repeated, in this process."""
    data = cg.load_fashion_mnist("train")
    for recipe, what, threads in sides(policy):
        if what == "sample":
            loop = sample_repeatedly(cg.load_pretrained(recipe))
        else:
            config = getattr(cg.CGANConfig, recipe)()
            create = functools.partial(make_engine, what, torch.device("cpu"), 1)
            loop = package_steps(config, data, config.batch_size, create)
        fixed = mock.patch.object(compiled, "Threads", lambda: use_all)
        with contextlib.nullcontext() if threads == "chosen" else fixed:
            for _ in range(2):  # the tuned recipe's first step has a program of its own
                next(loop)
        LOOPS[recipe, what, threads] = loop


def use_all(function):
    """Take the engine's place as it chooses: call a program with all threads."""
    return function(threads=torch.get_num_threads())


def sample_repeatedly(generator):
    while True:
        yield cg.sample(generator, torch.arange(IMAGES) % 10)


def milliseconds(side, seconds):
    """Repeat a step of this side for some seconds; return the mean time of one."""
    threads, count = torch.get_num_threads(), 0
    torch.set_num_threads(1 if side[-1] == "one" else threads)
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or count == 0:
        next(LOOPS[side])
        count += 1
    torch.set_num_threads(threads)
    return passed / count * 1e3


@contextlib.contextmanager
def neighbour():
    """Have a process compute all the time, on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def workers():
    """Yield a worker process for each policy, which OpenMP reads when it is loaded."""
    with contextlib.ExitStack() as stack:
        pools = {}
        for policy, variables in POLICIES.items():
            with mock.patch.dict(os.environ, variables):
                context = multiprocessing.get_context("spawn")
                pools[policy] = stack.enter_context(ProcessPoolExecutor(1, context))
                pools[policy].submit(start_worker, policy).result()
        yield pools


def measure(pools, rounds, seconds):
    """Return milliseconds per step: {recipe: {what: {policy: {threads: median}}}}."""
    results = {}
    for _ in tqdm(range(rounds), disable=None):
        for policy, pool in pools.items():
            for side in sides(policy):
                recipe, what, threads = side
                row = results.setdefault(recipe, {}).setdefault(what, {}).setdefault(policy, {})
                each = pool.submit(milliseconds, side, seconds).result()
                row.setdefault(threads, []).append(each)
    for rows in (rows for kinds in results.values() for rows in kinds.values()):
        for row in rows.values():
            row.update({k: round(statistics.median(each), 3) for k, each in row.items()})
    return results


def ratio(row):
    """Return how many times slower the engine's choice is than the better of one and all."""
    return round(row["chosen"] / min(row["one"], row["all"]), 3)


def main(output: Path = RESULTS, rounds: int = 6, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    rounds, seconds = (1, 0.05) if short else (rounds, 0.4)
    load = os.getloadavg()[0]
    with workers() as pools:
        quiet = measure(pools, rounds, seconds)
        with neighbour():
            busy = measure(pools, rounds, seconds)
    results = {
        "machine": machine("cpu") | {"cores": os.cpu_count(), "load": round(load, 1)},
        "rounds": rounds,
        "seconds": seconds,
        "milliseconds": {"quiet": quiet, "busy": busy},
        "chosen_to_better": {
            recipe: {
                name: ratio(times[recipe]["compiled"]["default"])
                for name, times in (("quiet", quiet), ("busy", busy))
            }
            for recipe in quiet
        },
    }
    write_results(output, results)
    print_table(results)


def print_table(results):
    for name, times in results["milliseconds"].items():
        for recipe, kinds in times.items():
            for what, policies in kinds.items():
                for policy, row in policies.items():
                    cells = "".join(f"{threads:>9}{ms:9.2f}" for threads, ms in row.items())
                    print(f"{name:6}{recipe:9}{what:9}{policy:8}{cells}")
    print("chosen, compared with the better of one thread and all:", results["chosen_to_better"])


if __name__ == "__main__":
    tyro.cli(main)

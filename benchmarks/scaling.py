"""What do two processes gain and cost, and what a second thread or a larger batch instead?

    python benchmarks/scaling.py            all of it, under five minutes on an idle machine
    python benchmarks/scaling.py --short    a few steps of everything

starts itself with torchrun on two processes. They train both recipes, each process on a batch of
its own, with and without exchanging gradients. The first also trains alone, while the other waits:
on one batch a step or two, with one thread or two. All take turns, in blocks of steps, so that
other load on the machine slows all of them alike. Then both time the all-reduce (the sum over
processes) of as many bytes as a network's gradients have. Writes results/scaling.json: milliseconds
a step, minimum and median over the blocks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import tyro
from quality import machine, write_results
from speed import RECIPES, describe_machine, package_steps, summary, timed
from torch import distributed

import cgan_utils as cg
from cgan_utils.engines.compiled import Compiled
from cgan_utils.engines.distributed import Distributed
from cgan_utils.engines.eager import Eager
from cgan_utils.models import create_networks

RESULTS = Path(__file__).parent / "results" / "scaling.json"
VARIANTS = {  # processes, the batches that they train on in a step, threads of each, engine
    "one thread": (1, 1, 1, Eager),
    "one thread, two batches": (1, 2, 1, Eager),
    "two threads": (1, 1, 2, Eager),
    "two threads, two batches": (1, 2, 2, Eager),
    "two threads, two batches, compiled": (1, 2, 2, Compiled),
    "two processes, apart": (2, 2, 1, Eager),
    "two processes, DDP": (2, 2, 1, Distributed),
}


def loop_of(variant, config, data):
    """Run a variant's training in this process; yield after each step."""
    processes, batches, _, engine = VARIANTS[variant]
    if processes == 1:
        config = config.replace(batch_size=batches * config.batch_size)
    rows = config.batch_size * (2 if engine is Distributed else 1)  # it takes this process's share
    return package_steps(config, data, rows, engine)


def measure_variants(config, data, steps, repeats):
    """Return milliseconds a step of each of this process's variants: blocks of `steps`, in turn."""
    mine = [name for name in VARIANTS if distributed.get_rank() < VARIANTS[name][0]]
    loops = {name: loop_of(name, config, data) for name in mine}
    seconds = {name: [] for name in mine}
    for _ in range(repeats + 1):  # the first block warms up
        for name, (_, _, threads, _) in VARIANTS.items():
            distributed.barrier()
            if name in loops:
                torch.set_num_threads(threads)
                block = timed(lambda loop=loops[name]: [next(loop) for _ in range(steps)])
                seconds[name].append(block / steps)
            torch.set_num_threads(1)
    return {name: summary(each[1:]) for name, each in seconds.items()}


def measure_all_reduce(size, repeats):
    """Return milliseconds of an all-reduce of a float32 tensor of `size` bytes."""
    tensor = torch.zeros(size // 4)
    seconds = [timed(lambda: distributed.all_reduce(tensor)) for _ in range(repeats + 3)]
    return summary(seconds[3:])  # the first three warm up


def gradient_bytes(config):
    """Return the bytes of each network's gradients, float32."""
    generator, discriminator, _ = create_networks(config)
    networks = {"Generator": generator, "Discriminator": discriminator}
    return {name: 4 * sum(p.numel() for p in n.parameters()) for name, n in networks.items()}


def worker(short):
    """Measure everything in one of the two processes; the first prints the results as JSON."""
    distributed.init_process_group("gloo")
    repeats, data = 1 if short else 30, cg.load_fashion_mnist("train")
    measured = {"training": {}, "all_reduce": {}}
    for recipe, (config, period) in RECIPES.items():
        steps = 2 if short else max(period, 20 // period)
        measured["training"][recipe] = measure_variants(config, data, steps, repeats)
        measured["all_reduce"][recipe] = {
            name: measure_all_reduce(size, repeats) for name, size in gradient_bytes(config).items()
        }
    if distributed.get_rank() == 0:
        print("MEASURED", json.dumps(measured))
    distributed.destroy_process_group()


def run_workers(short):
    """Start two workers and return what the first of them measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, *["--short"] * short]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    return json.loads(line.removeprefix("MEASURED"))


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        worker(short)
        return
    cpu = torch.device("cpu")
    here = machine(cpu) | describe_machine(cpu)  # before any load of our own
    del here["threads"]  # a variant's own
    configs = {recipe: config for recipe, (config, _) in RECIPES.items()}
    results = run_workers(short) | {
        "batches": {name: batches for name, (_, batches, *_) in VARIANTS.items()},
        "batch_size": {recipe: config.batch_size for recipe, config in configs.items()},
        "gradient_bytes": {recipe: gradient_bytes(config) for recipe, config in configs.items()},
        "machine": here,
    }
    write_results(output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    tyro.cli(main)

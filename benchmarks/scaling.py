"""What do several processes gain and cost, and what a second thread instead?

    python benchmarks/scaling.py            all of it
    python benchmarks/scaling.py --short    a few steps of everything

starts itself with torchrun on one and on two processes of one thread each. They train both recipes
with a fixed batch size per process, with and without exchanging gradients, and time the all-reduce
(the sum over processes) of tensors of several sizes. One and two processes take turns. The one
process also trains on as many images a step as two processes do together, with two threads and with
one. Writes results/scaling.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import tyro
from quality import machine, write_results
from speed import describe_machine, package_steps
from torch import distributed

import cgan_utils as cg
from cgan_utils.engines import process_count
from cgan_utils.engines.compiled import Compiled
from cgan_utils.engines.distributed import Distributed
from cgan_utils.engines.eager import Eager
from cgan_utils.models import create_networks

RESULTS = Path(__file__).parent / "results" / "scaling.json"
RECIPES = {"original": cg.CGANConfig.original(), "tuned": cg.CGANConfig.tuned()}
DOUBLED = {  # engine and threads of one process on two batches at once
    "one_thread_eager_ms": (Eager, 1),
    "two_threads_eager_ms": (Eager, 2),
    "two_threads_compiled_ms": (Compiled, 2),
}
BYTES = (4, 2**14, 2**18, 2**20, 2**22, 2**24)


def step_seconds(config, data, steps, engine_class, batches=1):
    """Return the median seconds of a training step while all processes run theirs.

    batches: how many times the recipe's batch size the engine's images are.
    """
    loop = package_steps(config, data, config.batch_size * batches, engine_class)
    return median_seconds(lambda: next(loop), steps)


def doubled_seconds(config, data, steps, engine_class, threads):
    """Return the same for one process with some threads, on two batches at once."""
    torch.set_num_threads(threads)
    try:
        config = config.replace(batch_size=2 * config.batch_size)
        return step_seconds(config, data, steps, engine_class)
    finally:
        torch.set_num_threads(1)


def all_reduce_seconds(size, repeats):
    """Return the median seconds of an all-reduce of a float32 tensor of `size` bytes."""
    tensor = torch.zeros(size // 4)
    return median_seconds(lambda: distributed.all_reduce(tensor), repeats)


def median_seconds(function, repeats):
    seconds = []
    for _ in range(repeats + 3):  # the first three warm up
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def worker(short):
    distributed.init_process_group("gloo")
    steps, repeats = (2, 2) if short else (60, 30)
    data = cg.load_fashion_mnist("train")
    measured = {
        f"{kind}_ms": {
            name: step_seconds(config, data, steps, engine_class, batches) * 1e3
            for name, config in RECIPES.items()
        }
        for kind, engine_class, batches in (
            ("apart", Eager, 1),
            ("together", Distributed, process_count()),
        )
    }
    if process_count() == 1:
        for kind, (engine_class, threads) in DOUBLED.items():
            measured[kind] = {
                name: doubled_seconds(config, data, steps, engine_class, threads) * 1e3
                for name, config in RECIPES.items()
            }
    measured["sum_ms"] = {size: all_reduce_seconds(size, repeats) * 1e3 for size in BYTES}
    if distributed.get_rank() == 0:
        print("MEASURED", json.dumps(measured))
    distributed.destroy_process_group()


def run(processes, short):
    """Start `processes` workers and return what the first of them measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__, *["--short"] * short]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    return json.loads(line.removeprefix("MEASURED"))


def gradient_bytes(config):
    """Return the bytes of each network's gradients, float32."""
    generator, discriminator, _ = create_networks(config)
    networks = {"Generator": generator, "Discriminator": discriminator}
    return {name: 4 * sum(p.numel() for p in n.parameters()) for name, n in networks.items()}


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        worker(short)
        return
    cpu = torch.device("cpu")
    here = machine(cpu) | describe_machine(cpu) | {"threads": 1}  # before any load of our own
    runs = [{n: run(n, short) for n in (1, 2)} for _ in range(1 if short else 3)]

    def best(processes, kind, name):
        return round(min(r[processes][kind][name] for r in runs), 4)

    results = {
        **{
            kind: {name: {n: best(n, kind, name) for n in (1, 2)} for name in RECIPES}
            for kind in ("apart_ms", "together_ms")
        },
        **{kind: {name: best(1, kind, name) for name in RECIPES} for kind in DOUBLED},
        "sum_ms": {size: best(2, "sum_ms", str(size)) for size in BYTES},
        "gradient_bytes": {name: gradient_bytes(config) for name, config in RECIPES.items()},
        "batch_size": {name: config.batch_size for name, config in RECIPES.items()},
        "machine": here,
    }
    write_results(output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    tyro.cli(main)

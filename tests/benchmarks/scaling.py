"""What do several processes cost and bring? Measured points for notebook 08's cost model.

    python tests/benchmarks/scaling.py

starts itself with torchrun on 1 and on 2 processes of one thread each, trains both recipes with a
fixed batch per process, with and without exchanging gradients, and times the sum over processes
(all-reduce) of tensors of several sizes. The two counts take turns. Writes results/scaling.json.
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
from speed import package_steps
from torch import distributed

import cgan_utils as cg
from cgan_utils import engines, training

RESULTS = Path(__file__).parent / "results" / "scaling.json"
RECIPES = {"original": cg.CGANConfig.original(), "tuned": cg.CGANConfig.tuned()}
BYTES = (4, 2**14, 2**18, 2**20, 2**22, 2**24)


def step_seconds(config, data, steps, engine_class):
    """Seconds of one training step while all processes make theirs, the median of `steps`."""
    engine = engine_class(training.draw_batch, cg.training_step)
    together = engines.processes() if engine_class is engines.Distributed else 1
    loop = package_steps(config, data, engine, config.batch_size * together)
    return median_seconds(lambda: next(loop), steps)


def sum_seconds(size, repeats):
    numbers = torch.zeros(size // 4)
    return median_seconds(lambda: distributed.all_reduce(numbers), repeats)


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
    found = {
        f"{kind}_ms": {
            name: step_seconds(config, data, steps, engine_class) * 1e3
            for name, config in RECIPES.items()
        }
        for kind, engine_class in (("apart", engines.Eager), ("together", engines.Distributed))
    }
    found |= {
        "sum_ms": {size: sum_seconds(size, repeats) * 1e3 for size in BYTES},
    }
    if distributed.get_rank() == 0:
        print("FOUND", json.dumps(found))
    distributed.destroy_process_group()


def run(processes, short):
    """What the first of `processes` workers found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__, *["--short"] * short]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    return json.loads(line.removeprefix("FOUND"))


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only looks whether everything runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        worker(short)
        return
    runs = [{n: run(n, short) for n in (1, 2)} for _ in range(1 if short else 3)]

    def best(processes, kind, name):
        return round(min(r[processes][kind][name] for r in runs), 4)

    results = {
        **{
            kind: {name: {n: best(n, kind, name) for n in (1, 2)} for name in RECIPES}
            for kind in ("apart_ms", "together_ms")
        },
        "sum_ms": {size: best(2, "sum_ms", str(size)) for size in BYTES},
        "gradient_bytes": {
            name: {
                network.__name__: 4 * sum(p.numel() for p in network(config).parameters())
                for network in (cg.Generator, cg.Discriminator)
            }
            for name, config in RECIPES.items()
        },
        "batch_size": {name: config.batch_size for name, config in RECIPES.items()},
        "machine": machine("cpu") | {"threads": 1, "cores": os.cpu_count()},
    }
    write_results(output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    tyro.cli(main)

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
import types
from pathlib import Path

import torch
import tyro
from quality import machine
from torch import distributed

import cgan_utils as cg
from cgan_utils import engines, training

RESULTS = Path(__file__).parent / "results" / "scaling.json"
RECIPES = {"original": cg.CGANConfig.original(), "tuned": cg.CGANConfig.tuned()}
BYTES = (4, 2**14, 2**18, 2**20, 2**22, 2**24)


def step_seconds(config, data, steps, engine_class):
    """Seconds of one training step while all processes make theirs, the median of `steps`."""
    state = cg.TrainingState.create(config, seed=0)
    engine = engine_class(training.draw_batch, cg.training_step)
    state.measures = torch.zeros(training.steps_per_epoch(config, data), 4)
    bar = types.SimpleNamespace(update=lambda: None)
    together = engines.processes() if engine_class is engines.Distributed else 1
    batches = torch.randperm(len(data)).split(config.batch_size * together)
    return median_seconds(lambda i: cg.train_epoch(state, data, batches[i], bar, engine), steps)


def sum_seconds(size, repeats):
    numbers = torch.zeros(size // 4)
    return median_seconds(lambda _: distributed.all_reduce(numbers), repeats)


def median_seconds(function, repeats):
    seconds = []
    for i in range(repeats + 3):  # the first three warm up
        start = time.perf_counter()
        function(i)
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
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    tyro.cli(main)

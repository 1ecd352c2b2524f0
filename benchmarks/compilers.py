"""What does compiling the training step bring: torch.compile beside the package's own engine?

    python benchmarks/compilers.py            five to ten minutes, most of it torch.compile's
    python benchmarks/compilers.py --short    the original recipe, a few steps

traces the step of each recipe with torch.fx, once, and runs it in three ways: eagerly, by
TorchInductor (what torch.compile uses) and by the package's generator of C. All three start from
the same seed, and their parameters are compared after a few steps. Then they take turns, so that
other load on the machine slows all of them alike. Compiling starts without caches. Writes
results/compilers.json: the seconds until the first steps are done, milliseconds a step (minimum
and median over the repeats), and what follows for a whole run. The largest difference of a
parameter says little about the tuned recipe: its Adam, with beta_1 = 0, divides a gradient by
hardly more than itself, so where rounding decides the sign it moves a whole learning rate.
"""

import copy
import itertools
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from quality import write_results
from speed import RECIPES, describe_machine, measure_steps, package_steps, timed

import cgan_utils as cg
from cgan_utils.engines.compiled import Compiled
from cgan_utils.engines.eager import Eager
from cgan_utils.engines.inductor import compile_by_inductor
from cgan_utils.engines.traced import Traced, reading_schedule, scheduled_numbers, tensors_of
from cgan_utils.training import steps_per_epoch

RESULTS = Path(__file__).parent / "results" / "compilers.json"


class Inductor(Traced):
    """Run the traced step by TorchInductor; the rest is as in the engine `Compiled`."""

    kind = "Inductor"

    def record(self, state, data, batch):
        model = copy.deepcopy(state)  # tracing runs the step once, for real
        numbers = {name: torch.tensor(float(v)) for name, v in scheduled_numbers(state).items()}
        inputs = self.sample(model, data, batch)
        with reading_schedule(model, numbers) as view:
            compiled = compile_by_inductor(self.step, view, inputs)

        def run(state, data, batch):
            numbers = [torch.tensor(float(v)) for v in scheduled_numbers(state).values()]
            inputs = self.sample(state, data, batch)
            with torch.no_grad():  # the gradients are part of the program
                return compiled(*tensors_of(state), *numbers, *inputs)

        return run


ENGINES = {"eager": Eager, "Inductor": Inductor, "compiled C": Compiled}


def largest_difference(config, data, engine_class, steps):
    """Return how far an engine's parameters are from the eager ones after a few steps."""

    def parameters(engine_class):
        torch.manual_seed(0)  # of the order of the images
        states = []

        def create(sample, step):
            engine = engine_class(sample, step)

            def run(state, data, batch):
                states.append(state)
                return engine(state, data, batch)

            return run

        loop = package_steps(config, data, config.batch_size, create)
        for _ in range(steps):
            next(loop)
        networks = states[-1].generator, states[-1].discriminator
        return torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])

    difference = parameters(engine_class) - parameters(Eager)
    return difference.abs().max().item()


def measure_recipe(recipe, data, repeats, steps, compared_steps):
    """Return a row for each engine, and check that it computes what eager PyTorch computes."""
    config, period = RECIPES[recipe]
    loops, rows = {}, {}
    for name, engine_class in ENGINES.items():
        torch._dynamo.reset()
        loop = loops[name] = package_steps(config, data, config.batch_size, engine_class)
        first = itertools.islice(loop, min(period, 2))  # each kind of step has its own program
        rows[name] = {"first_steps_s": round(timed(lambda steps=first: list(steps)), 1)}
    total_steps = config.epochs * steps_per_epoch(config, data)
    for name, times in measure_steps(loops, steps * period, repeats).items():
        row = rows[name] | times
        row["run_s"] = round(row["first_steps_s"] + total_steps * row["min_ms"] / 1e3)
        rows[name] = row
    for name, row in rows.items():
        if name != "eager":
            difference = largest_difference(config, data, ENGINES[name], compared_steps)
            row["largest_difference"] = float(f"{difference:.1e}")
        print(recipe, name, row, flush=True)
    return {"epochs": config.epochs, "steps": total_steps, "engines": rows}


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    here = describe_machine(torch.device("cpu"))  # before any load of our own
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    data = cg.load_fashion_mnist("train")
    recipes = ("original",) if short else tuple(RECIPES)
    repeats, steps, compared_steps = (2, 1, 2) if short else (20, 5, 10)
    results = {
        "machine": here,
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "compared_steps": compared_steps,
        "recipes": {
            recipe: measure_recipe(recipe, data, repeats, steps, compared_steps)
            for recipe in recipes
        },
    }
    write_results(output, results)


if __name__ == "__main__":
    tyro.cli(main)

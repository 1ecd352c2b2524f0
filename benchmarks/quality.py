r"""How good is a recipe, and how much do its metrics vary from seed to seed?

    python benchmarks/quality.py --recipe original --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/quality.py --recipe tuned --seeds 0 1 2 --ship
    python benchmarks/quality.py --recipe tuned --seeds 0 1 2 --epochs 6 \
        --output benchmarks/results/tuned_short.json
    python benchmarks/quality.py --recipe original --seeds 0 1 2 --epochs 40 \
        --output benchmarks/results/original_long.json

trains the recipe once per seed, evaluates each generator and writes results/quality.json, or the
file that --output names. The file is keyed by recipe; its other recipes stay. It holds the value
per seed, mean, standard deviation and an acceptance band of each metric: see `summarize`. With
--ship the first seed's generator becomes the one that `cg.load_pretrained` returns, and its class
grid the image that the tests compare with.
"""

import json
import math
import platform
import re
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

import cgan_utils as cg
from cgan_utils.evaluation import METRICS
from cgan_utils.pretrained import save_pretrained
from cgan_utils.sampling import generator_of

GRIDS = Path(__file__).parents[1] / "tests" / "pretrained_grids"
RESULTS = Path(__file__).parent / "results" / "quality.json"
PER_CLASS = ("gan_test_per_class", "gan_train_per_class", "diversity_per_class")
AT_MOST_1 = ("gan_test", "gan_train", "coverage", "d_real", "d_fake")  # the others have no maximum


def summarize(name, per_seed):
    """Return mean, standard deviation and acceptance band of a metric's values, one per seed.

    The band is where another run should fall: on another machine or version of PyTorch even the
    same seed follows another trajectory after a few hundred steps, so it counts as a new seed. The
    band is the range of the values, extended by its own width on both sides, but clipped to the
    metric's minimum 0 and, if it has one, its maximum 1. If the values are normally distributed,
    the value of one more seed falls into it with a probability of 99.8% (for ten seeds; 97% for
    five, 87% for three).
    """
    low, high = min(per_seed), max(per_seed)
    margin = high - low
    maximum = 1 if name.removesuffix("_per_class") in AT_MOST_1 else math.inf
    return {
        "per_seed": [round(value, 5) for value in per_seed],
        "mean": round(statistics.mean(per_seed), 5),
        "std": round(statistics.stdev(per_seed), 5),
        "band": [round(max(low - margin, 0), 5), round(min(high + margin, maximum), 5)],
    }


def measure(recipe, config, seeds, device="cpu", ship=False, step=None):
    """Train and evaluate a config with each seed; step: one's own, or None for the recipe's."""
    data = cg.load_fashion_mnist("train")
    histories, reports, seconds = [], [], []
    for seed in seeds:
        start = time.process_time()
        state = cg.train(config, data, device, seed=seed, step=step, progress=False)
        seconds.append(round(time.process_time() - start))
        if ship and seed == seeds[0]:
            ship_generator(recipe, generator_of(state), seed, seconds[0], device)
        report = cg.evaluate(state, seed, progress=False)
        histories.append(state.history)
        reports.append(report)
        print(
            f"{recipe}, seed {seed}, {seconds[-1]} s of CPU time\n{cg.format_report(report)}\n",
            flush=True,
        )
    return {
        "config": config.to_dict(),
        "seeds": list(seeds),
        "training_cpu_seconds": seconds,
        "metrics": {
            name: summarize(name, [report[name] for report in reports]) for name in METRICS
        },
        "per_class": {
            name: {
                label: summarize(name, [report[name][label] for report in reports])
                for label in config.classes
            }
            for name in PER_CLASS
        },
        "history": {  # one summary per epoch
            name: [
                summarize(name, [history[name][epoch] for history in histories])
                for epoch in range(config.epochs)
            ]
            for name in histories[0]
        },
        "real": {name: round(reports[0]["real"][name], 5) for name in METRICS},
        "images": reports[0]["images"],
        "machine": machine(device),
    }


def ship_generator(recipe, generator, seed, seconds, device):
    """Put a generator into the package, with the metrics of its half-precision parameters."""
    record = {"seed": seed, "training_cpu_seconds": seconds, "machine": machine(device)}
    save_pretrained(recipe, generator, record)
    shipped = cg.load_pretrained(recipe)
    save_pretrained(recipe, shipped, record | {"metrics": cg.evaluate(shipped, progress=False)})
    GRIDS.mkdir(exist_ok=True)
    tile(cg.class_grid(shipped), columns=10).save(GRIDS / f"{recipe}.png")


def tile(images, columns):
    """Tile greyscale images float (N, 1, H, W) in [-1, 1], row by row, into one 8-bit image."""
    tiled = make_grid(images, nrow=columns, padding=0)[:1]  # one of its three equal channels
    return to_pil_image(((tiled + 1) * 127.5).round().to(torch.uint8))


def machine(device):
    return {
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchmetrics", "numpy")},
    }


def processor(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def entry_for(entries, name, config):
    """Return the entry of these runs; a fresh one if there is none yet, or of another config."""
    if entries.get(name, {}).get("config") != config.to_dict():
        entries[name] = {"config": config.to_dict(), "seeds": {}}
    return entries[name]


def read_results(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_results(path, results):
    """Write JSON with each list of plain values on one line; create the folder if necessary."""
    text = json.dumps(results, indent=2)
    text = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def print_table(results):
    """Print mean and standard deviation over seeds, a row per recipe, above the real images'."""
    print(f"{'':12}" + "".join(f"{name:>18}" for name in METRICS))
    for recipe, result in results.items():
        cells = (f"{s['mean']:.3f} +- {s['std']:.3f}" for s in result["metrics"].values())
        print(f"{recipe:12}" + "".join(f"{cell:>18}" for cell in cells))
        print(f"{'  (real)':12}" + "".join(f"{value:18.3f}" for value in result["real"].values()))


def main(
    recipe: str = "original",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    epochs: int | None = None,
    output: Path = RESULTS,
    device: str = "cpu",
    ship: bool = False,
):
    """Measure a recipe and write it into the results file.

    Args:
        recipe: original or tuned
        seeds: at least two
        epochs: train for so many instead of the recipe's own number
        output: the results file
        device: where to train and evaluate
        ship: put the first seed's generator into the package
    """
    if len(set(seeds)) < 2:
        raise SystemExit(f"--seeds needs at least two different ones; got {seeds}")
    if recipe not in cg.CGANConfig.recipes:
        known = " or ".join(cg.CGANConfig.recipes)
        raise SystemExit(f"--recipe must be {known}; got {recipe!r}")
    if ship and epochs is not None:
        raise SystemExit("--ship needs the recipe's own epochs; leave out --epochs")
    config = getattr(cg.CGANConfig, recipe)()
    if epochs is not None:
        config = config.replace(epochs=epochs)
    result = measure(recipe, config, seeds, device, ship)
    results = read_results(output)
    results[recipe] = result
    write_results(output, results)
    print_table(results)


if __name__ == "__main__":
    tyro.cli(main)

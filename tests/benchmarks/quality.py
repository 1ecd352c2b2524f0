"""How good is a recipe, and how much does that vary from seed to seed?

    python tests/benchmarks/quality.py --recipe original --seeds 0 1 2 3 4 5 6 7 8 9
    python tests/benchmarks/quality.py --recipe tuned --seeds 0 1 2 --ship

trains the recipe once per seed, evaluates it and writes results/quality.json, keyed by recipe;
other recipes in the file stay. For each number it holds the value per seed, mean, standard
deviation and a band: see `summarize`. With --ship the first seed's generator becomes the one that
`cg.load_pretrained` gives, and its class grid the picture that tests compare with.
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
from cgan_utils.evaluation import FIGURES
from cgan_utils.pretrained import save_pretrained

GRIDS = Path(__file__).parents[1] / "pretrained_grids"
RESULTS = Path(__file__).parent / "results" / "quality.json"
PER_CLASS = ("gan_test_per_class", "gan_train_per_class", "diversity_per_class")
SHARES = ("gan_test", "gan_train", "coverage", "d_real", "d_fake")  # of 1; the others have no end


def summarize(name, per_seed):
    """Mean, standard deviation and acceptance band of a figure's values, one per seed.

    The band is where another run should fall: on another machine or version of PyTorch even the
    same seed takes another course after a few hundred steps, so it counts as a new seed. It is the
    range of the values, widened by itself on both sides, though not below 0, nor above 1 where the
    figure ends there: if they are normal, the value of one more seed falls into it with a
    probability of 99.8% (for ten seeds; 97% for five, 87% for three).
    """
    low, high = min(per_seed), max(per_seed)
    margin = high - low
    end = 1 if name.removesuffix("_per_class") in SHARES else math.inf
    return {
        "per_seed": [round(value, 5) for value in per_seed],
        "mean": round(statistics.mean(per_seed), 5),
        "std": round(statistics.stdev(per_seed), 5),
        "band": [round(max(low - margin, 0), 5), round(min(high + margin, end), 5)],
    }


def measure(recipe, seeds, device="cpu", ship=False):
    """Train and evaluate `CGANConfig.<recipe>()` with each seed."""
    config = getattr(cg.CGANConfig, recipe)()
    data = cg.load_fashion_mnist("train")
    histories, reports, seconds = [], [], []
    for seed in seeds:
        start = time.process_time()
        result = cg.train(config, data, device, seed=seed, progress=False)
        seconds.append(round(time.process_time() - start))
        if ship and seed == seeds[0]:
            ship_generator(recipe, result.generator, seed, seconds[0], device)
        report = cg.evaluate(result.generator, seed, progress=False)
        histories.append(result.history)
        reports.append(report)
        print(
            f"{recipe}, seed {seed}, {seconds[-1]} s of CPU time\n{cg.format_report(report)}\n",
            flush=True,
        )
    return {
        "config": config.to_dict(),
        "seeds": list(seeds),
        "training_cpu_seconds": seconds,
        "figures": {
            name: summarize(name, [report[name] for report in reports]) for name in FIGURES
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
        "real": {name: round(reports[0]["real"][name], 5) for name in FIGURES},
        "images": reports[0]["images"],
        "machine": machine(device),
    }


def ship_generator(recipe, generator, seed, seconds, device):
    """Put it into the package; its figures are those of the half-precision weights there."""
    record = {"seed": seed, "training_cpu_seconds": seconds, "machine": machine(device)}
    save_pretrained(recipe, generator, record)
    shipped = cg.load_pretrained(recipe)
    save_pretrained(recipe, shipped, record | {"figures": cg.evaluate(shipped, progress=False)})
    GRIDS.mkdir(exist_ok=True)
    picture(cg.class_grid(shipped), columns=10).save(GRIDS / f"{recipe}.png")


def picture(images, columns):
    """Grey images float (N, 1, H, W) in [-1, 1], row by row, as one picture of 256 greys."""
    tiled = make_grid(images, nrow=columns, padding=0)[:1]  # of its three equal channels
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


def read_results(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_results(path, results):
    """As JSON, with each list of plain values on one line; makes the folder."""
    text = json.dumps(results, indent=2)
    text = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def print_table(results):
    """One row per recipe: mean and standard deviation over seeds; last, the real images' values."""
    print(f"{'':12}" + "".join(f"{name:>18}" for name in FIGURES))
    for recipe, result in results.items():
        cells = (f"{s['mean']:.3f} +- {s['std']:.3f}" for s in result["figures"].values())
        print(f"{recipe:12}" + "".join(f"{cell:>18}" for cell in cells))
        print(f"{'  (real)':12}" + "".join(f"{value:18.3f}" for value in result["real"].values()))


def main(
    recipe: str = "original",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    device: str = "cpu",
    ship: bool = False,
):
    """Measure a recipe and write it into the results file.

    Args:
        recipe: name of a classmethod of CGANConfig
        seeds: at least two
        device: where to train and evaluate
        ship: put the first seed's generator into the package
    """
    if len(set(seeds)) < 2:
        raise SystemExit(f"--seeds needs at least two different ones; got {seeds}")
    if not callable(getattr(cg.CGANConfig, recipe, None)):
        raise SystemExit(f"--recipe must be a classmethod of CGANConfig; got {recipe!r}")
    result = measure(recipe, seeds, device, ship)
    results = read_results(RESULTS)
    results[recipe] = result
    write_results(RESULTS, results)
    print_table(results)


if __name__ == "__main__":
    tyro.cli(main)

"""How good is a recipe, and how much does that vary from seed to seed?

    python tests/benchmarks/quality.py --recipe original --seeds 0 1 2 3 4

trains the recipe once per seed, evaluates it and writes results/quality.json, keyed by recipe;
other recipes in the file stay. For each number it holds the value per seed, mean, standard
deviation and a band: see `summarize`.
"""

import json
import platform
import re
import statistics
from importlib.metadata import version
from pathlib import Path

import torch
import tyro

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "quality.json"
FIGURES = ("gan_test", "gan_train", "frechet", "density", "coverage", "diversity")
PER_CLASS = ("gan_test_per_class", "gan_train_per_class", "diversity_per_class")


def summarize(per_seed):
    """Mean, standard deviation and acceptance band of a list with one value per seed.

    The band is where another run should fall: on another machine or version of PyTorch even the
    same seed takes another course after a few hundred steps, so it counts as a new seed. It is the
    range of the values, widened by itself on both sides, though not below 0, where every figure
    ends: if they are normal, the value of one more seed falls into it with a probability of 97%
    (for five seeds; the range alone: 67%).
    """
    low, high = min(per_seed), max(per_seed)
    margin = high - low
    return {
        "per_seed": [round(value, 5) for value in per_seed],
        "mean": round(statistics.mean(per_seed), 5),
        "std": round(statistics.stdev(per_seed), 5),
        "band": [round(max(low - margin, 0), 5), round(high + margin, 5)],
    }


def measure(recipe, seeds, device="cpu"):
    """Train and evaluate `CGANConfig.<recipe>()` with each seed."""
    config = getattr(cg.CGANConfig, recipe)()
    data = cg.load_fashion_mnist("train")
    histories, reports = [], []
    for seed in seeds:
        result = cg.train(config, data, device, seed=seed, progress=False)
        report = cg.evaluate(result.generator, seed, progress=False)
        histories.append(result.history)
        reports.append(report)
        print(f"{recipe}, seed {seed}\n{cg.format_report(report)}\n", flush=True)
    return {
        "config": config.to_dict(),
        "seeds": list(seeds),
        "figures": {name: summarize([report[name] for report in reports]) for name in FIGURES},
        "per_class": {
            name: {
                label: summarize([report[name][label] for report in reports])
                for label in config.classes
            }
            for name in PER_CLASS
        },
        "history": {  # one summary per epoch
            name: [
                summarize([history[name][epoch] for history in histories])
                for epoch in range(config.epochs)
            ]
            for name in histories[0]
        },
        "real": {name: round(reports[0]["real"][name], 5) for name in FIGURES},
        "images": reports[0]["images"],
        "machine": {
            "processor": processor(device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchmetrics", "numpy")},
        },
    }


def processor(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def print_table(results):
    """One row per recipe: mean and standard deviation over seeds; last, the real images' values."""
    print(f"{'':12}" + "".join(f"{name:>18}" for name in FIGURES))
    for recipe, result in results.items():
        cells = (f"{s['mean']:.3f} +- {s['std']:.3f}" for s in result["figures"].values())
        print(f"{recipe:12}" + "".join(f"{cell:>18}" for cell in cells))
        print(f"{'  (real)':12}" + "".join(f"{value:18.3f}" for value in result["real"].values()))


def main(recipe: str = "original", seeds: tuple[int, ...] = (0, 1, 2, 3, 4), device: str = "cpu"):
    """Measure a recipe and write it into the results file.

    Args:
        recipe: name of a classmethod of CGANConfig
        seeds: at least two
        device: where to train and evaluate
    """
    if len(set(seeds)) < 2:
        raise SystemExit(f"--seeds needs at least two different ones; got {seeds}")
    if not callable(getattr(cg.CGANConfig, recipe, None)):
        raise SystemExit(f"--recipe must be a classmethod of CGANConfig; got {recipe!r}")
    result = measure(recipe, seeds, device)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[recipe] = result
    text = json.dumps(results, indent=2)
    text = re.sub(
        r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text
    )  # lists on a line
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print_table(results)


if __name__ == "__main__":
    tyro.cli(main)

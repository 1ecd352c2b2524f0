"""What does each change between the original recipe and the tuned one contribute?

    python benchmarks/recipe_steps.py --seeds 0 1 2

trains and evaluates short runs of the recipes below and writes results/recipe_steps.json. The
group "steps" holds the steps of notebook 06, each on top of all previous ones. The group "without"
is an ablation: the recipe before the last step, each time without one of its parts. All runs of a
group see the same number of images. A run that the file already holds for the same config is
skipped, so an interrupted measurement continues where it stopped. results/steps/ holds a strip of
images for each step: two z, each with all ten classes.
"""

from pathlib import Path

import tyro
from quality import entry_for, machine, read_results, tile, write_results

import cgan_utils as cg
from cgan_utils.evaluation import METRICS
from cgan_utils.sampling import generator_of

RESULTS = Path(__file__).parent / "results" / "recipe_steps.json"
EPOCHS = {"steps": 4, "without": 2}

STEPS = {  # each one changes the config that the previous one left
    "original": {},
    "EMA of G": {"ema_decay": 0.999},
    "projection": {"projection": True},
    "R1 penalty": {"r1_gamma": 0.5},
    "faster steps": {
        "betas": (0.0, 0.99),
        "learning_rate": 1e-3,
        "learning_rate_decay": True,
    },
    "larger networks": {
        "hidden_dim": 512,
        "hidden_layers": 3,
        "embedding_dim": 32,
        "latent_dim": 64,
        "batch_size": 64,
    },
    "conditional batch norm": {"conditional_batch_norm": True},
    "edge features": {"edge_features": True, "r1_gamma": 2.0},
    "matching-aware loss": {"matching_aware_weight": 1.0},
    "patch decoder": {"patch_decoder": True, "batch_size": 96, "learning_rate": 1.2e-3},
}

WITHOUT = {  # the recipe before the last step, with one part as in the original recipe
    "nothing": {},
    "EMA of G": {"ema_decay": 0.0},
    "projection": {"projection": False, "matching_aware_weight": 0.0},  # which needs projection
    "R1 penalty": {"r1_gamma": 0.0},
    "faster steps": {
        "betas": (0.9, 0.999),
        "learning_rate": 2e-4,
        "learning_rate_decay": False,
    },
    "larger networks": {
        "hidden_dim": 256,
        "hidden_layers": 2,
        "embedding_dim": 10,
        "latent_dim": 100,
    },
    "conditional batch norm": {"conditional_batch_norm": False},
    "edge features": {"edge_features": False, "r1_gamma": 0.5},  # enough without edge features
    "matching-aware loss": {"matching_aware_weight": 0.0},
}


def recipes():
    """Yield group, name and config of each recipe, in the order in which they are measured."""
    config = cg.tuned.TunedConfig()
    for name, change in STEPS.items():
        before, config = config, config.replace(**change)
        yield "steps", name, config
    if config.replace(epochs=cg.CGANConfig.tuned().epochs) != cg.CGANConfig.tuned():
        raise SystemExit("the steps do not end at CGANConfig.tuned(); bring them up to date")
    for name, change in WITHOUT.items():
        yield "without", name, before.replace(**change)


def in_order(results):
    """Return the results in the order of `recipes`, without entries that it does not list."""
    entries = {group: {} for group in EPOCHS}
    for group, name, _ in recipes():
        if name in results.get(group, {}):
            entries[group][name] = results[group][name]
    return results | entries


def trained_generator(config, data, seed):
    """Train a recipe and return the network to sample from.

    It samples with z of standard deviation 1 in every step: the last one would use its own 1.1.
    """
    generator = generator_of(cg.train(config, data, "cpu", seed=seed, progress=False))
    generator.latent_scale = 1.0
    return generator


def save_strip(generator, name):
    """Save two z, each with all ten classes, as one image of two rows."""
    strip = cg.class_grid(generator, columns=2).unflatten(0, (10, 2)).transpose(0, 1)
    path = RESULTS.with_name("steps") / f"{name.replace(' ', '_')}.png"
    path.parent.mkdir(exist_ok=True)
    tile(strip.flatten(0, 1), columns=10).save(path)


def main(seeds: tuple[int, ...] = (0, 1, 2), groups: tuple[str, ...] = ("steps", "without")):
    """Measure what the results file does not hold yet, and write it there.

    Args:
        seeds: one training run each
        groups: of steps, without
    """
    data = cg.load_fashion_mnist("train")
    for seed in seeds:
        for group, name, config in recipes():
            config = config.replace(epochs=EPOCHS[group])
            known = entry_for(read_results(RESULTS).get(group, {}), name, config)
            if group in groups and str(seed) not in known["seeds"]:
                keep(group, name, config, seed, measure(config, data, seed, group, name))


def measure(config, data, seed, group, name):
    """Train and evaluate one run; return its report."""
    generator = trained_generator(config, data, seed)
    if group == "steps" and seed == 0:
        save_strip(generator, name)
    return cg.evaluate(generator, gan_train_images=10_000, progress=False)


def keep(group, name, config, seed, report):
    """Write the metrics of one run into the results file."""
    results = read_results(RESULTS)
    entry = entry_for(results.setdefault(group, {}), name, config)
    entry["seeds"][str(seed)] = {metric: round(report[metric], 5) for metric in METRICS}
    entry["seeds"] = dict(sorted(entry["seeds"].items()))
    results["real"] = {metric: round(report["real"][metric], 5) for metric in METRICS}
    results["machine"] = machine("cpu")
    write_results(RESULTS, in_order(results))
    print(f"seed {seed}  {group:8} {name:24}", entry["seeds"][str(seed)], flush=True)


if __name__ == "__main__":
    tyro.cli(main)

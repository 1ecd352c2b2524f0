"""From the original recipe to the tuned one: what does each change do?

    python tests/benchmarks/recipe_steps.py --seeds 0 1 2

trains and evaluates short runs of the recipes below and writes results/recipe_steps.json: the steps
of notebook 06, each on top of all before it; and, before the last of them, the recipe without one
of its parts. Within a group all see equally many images. What is measured already with the same
config is not measured again, so that an interrupted run goes on. results/steps/ has a strip of
pictures for each step: two z, each as all ten classes.
"""

from pathlib import Path

import tyro
from quality import machine, picture, read_results, write_results

import cgan_utils as cg
from cgan_utils.evaluation import FIGURES

RESULTS = Path(__file__).parent / "results" / "recipe_steps.json"
EPOCHS = {"steps": 4, "without": 2}

STEPS = {  # each changes what the ones before it left
    "original": {},
    "average of G": {"ema_decay": 0.999},
    "projection": {"projection": True},
    "gradient penalty": {"gradient_penalty": 0.5},
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
    "conditional norm": {"conditional_norm": True},
    "fine detail": {"fine_detail": True, "gradient_penalty": 2.0},
    "wrong labels": {"mismatch_weight": 1.0},
    "shared patches": {"shared_patches": True, "batch_size": 96, "learning_rate": 1.2e-3},
}

WITHOUT = {  # the recipe before the last step, with one part as the original has it
    "nothing": {},
    "average of G": {"ema_decay": 0.0},
    "projection": {"projection": False, "mismatch_weight": 0.0},  # which needs it
    "gradient penalty": {"gradient_penalty": 0.0},
    "conditional norm": {"conditional_norm": False},
    "fine detail": {"fine_detail": False, "gradient_penalty": 0.5},  # which was enough without
    "wrong labels": {"mismatch_weight": 0.0},
}


def recipes():
    """Group and name -> config, in the order in which they are measured."""
    config = cg.CGANConfig.original()
    for name, change in STEPS.items():
        before, config = config, config.replace(**change)
        yield "steps", name, config
    tuned = cg.CGANConfig.tuned().replace(latent_scale=1.0)
    if config.replace(epochs=tuned.epochs) != tuned:
        raise SystemExit("the steps do not end at CGANConfig.tuned(); bring them up to date")
    for name, change in WITHOUT.items():
        yield "without", name, before.replace(**change)


def in_order(results):
    """The results with the recipes above in their order, and without those that are no more."""
    entries = {group: {} for group in EPOCHS}
    for group, name, _ in recipes():
        if name in results.get(group, {}):
            entries[group][name] = results[group][name]
    return results | entries


def main(seeds: tuple[int, ...] = (0, 1, 2), groups: tuple[str, ...] = ("steps", "without")):
    """Measure what is not measured yet and write it into the results file.

    Args:
        seeds: one training run each
        groups: of steps, without
    """
    data = cg.load_fashion_mnist("train")
    for seed in seeds:
        for group, name, config in recipes():
            if group not in groups:
                continue
            config = config.replace(epochs=EPOCHS[group])
            results = read_results(RESULTS)
            entry = results.setdefault(group, {}).setdefault(name, {})
            if entry.get("config") != config.to_dict():
                entry = results[group][name] = {"config": config.to_dict(), "seeds": {}}
            if str(seed) in entry["seeds"]:
                continue
            generator = cg.train(config, data, "cpu", seed=seed, progress=False).generator
            if group == "steps" and seed == 0:
                strip = cg.class_grid(generator, columns=2).unflatten(0, (10, 2)).transpose(0, 1)
                path = RESULTS.with_name("steps") / f"{name.replace(' ', '_')}.png"
                path.parent.mkdir(exist_ok=True)
                picture(strip.flatten(0, 1), columns=10).save(path)
            report = cg.evaluate(generator, gan_train_images=10_000, progress=False)
            entry["seeds"][str(seed)] = {name: round(report[name], 5) for name in FIGURES}
            results["real"] = {name: round(report["real"][name], 5) for name in FIGURES}
            results["machine"] = machine("cpu")
            write_results(RESULTS, in_order(results))
            print(f"seed {seed}  {group:8} {name:24}", entry["seeds"][str(seed)], flush=True)


if __name__ == "__main__":
    tyro.cli(main)

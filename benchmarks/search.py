"""Is a change of the tuned recipe better? The search that never looks at the test images.

    python benchmarks/search.py --seeds 0 1 2

trains each candidate below with each seed on the first 50,000 training images and compares 10,000
generated images with the last 10,000, which are held out. Two classifiers of different design
measure: a recipe that pleases one of them only has learned that one's weaknesses. Both were trained
on the first 50,000 images alone. Writes results/search.json and prints, for each classifier and
metric, mean and standard deviation over the seeds. A run that the file already holds for the same
config is skipped. Add your own candidates to the list.
"""

import statistics
from pathlib import Path

import tyro
from evaluation_sensitivity import numbers, train_mlp
from quality import entry_for, machine, read_results, write_results

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "search.json"
HELD_OUT = 10_000
BASE = cg.CGANConfig.tuned().replace(epochs=2)  # short, so that many can be compared
CANDIDATES = {
    "tuned": {},
    "gamma 1": {"r1_gamma": 1.0},
    "gamma 4": {"r1_gamma": 4.0},
}
SCALES = 1.0, 1.1  # of z, when sampling


def train_classifiers(train):
    """Return a convolutional classifier and one without convolutions."""
    images, labels = cg.normalize(train.images), train.labels
    return {
        "convolutional": cg.train_classifier(images, labels, progress=False),
        "MLP": train_mlp(images, labels),
    }


def measure(config, seed, train, held_out, classifiers):
    """Train one candidate; return its metrics on the held-out images, by scale and classifier."""
    generator = cg.train(config, train, "cpu", seed=seed, progress=False).generator_ema
    labels = held_out.labels
    found = {}
    for scale in SCALES:
        images = cg.sample(generator, labels, seed=seed, latent_scale=scale)
        for name, classifier in classifiers.items():
            metrics = cg.compute_metrics(classifier, images, labels, held_out)
            found[f"z x {scale}, {name}"] = numbers(metrics)
    return found


def level_of_real_images(train, held_out, classifiers):
    """Return the metrics of as many training images."""
    images, labels = cg.normalize(train.images[:HELD_OUT]), train.labels[:HELD_OUT]
    return {
        name: numbers(cg.compute_metrics(each, images, labels, held_out))
        for name, each in classifiers.items()
    }


def print_table(results, metrics=("gan_test", "frechet", "frechet_within", "coverage")):
    print(f"{'mean +- deviation over seeds':44s}" + "".join(f"{m:>18s}" for m in metrics))
    for candidate, entry in results["candidates"].items():
        runs = list(entry["seeds"].values())
        for judged in runs[0]:
            columns = [[run[judged][metric] for run in runs] for metric in metrics]
            cells = [f"{statistics.mean(c):.3f} +- {statistics.stdev(c):.3f}" for c in columns]
            print(f"{candidate + ', ' + judged:44s}" + "".join(f"{c:>18s}" for c in cells))


def main(seeds: tuple[int, ...] = (0, 1, 2), output: Path = RESULTS):
    """Measure what the results file does not hold yet, and print the table.

    Args:
        seeds: at least two; one training run each, of each candidate
        output: the results file
    """
    data = cg.load_fashion_mnist("train")
    train, held_out = data[:-HELD_OUT], data[-HELD_OUT:]
    classifiers = train_classifiers(train)
    results = read_results(output)
    results["real"] = level_of_real_images(train, held_out, classifiers)
    results["machine"] = machine("cpu")
    entries = results.setdefault("candidates", {})
    for seed in seeds:
        for name, change in CANDIDATES.items():
            config = BASE.replace(**change)
            entry = entry_for(entries, name, config)
            if str(seed) not in entry["seeds"]:
                found = measure(config, seed, train, held_out, classifiers)
                entry["seeds"][str(seed)] = found
                write_results(output, results)
                print("seed", seed, name, found, flush=True)
    print_table(results)


if __name__ == "__main__":
    tyro.cli(main)

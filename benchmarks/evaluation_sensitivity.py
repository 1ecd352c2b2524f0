"""What do the metrics depend on besides the generator, and how strongly?

    python benchmarks/evaluation_sensitivity.py            about 15 minutes on one core
    python benchmarks/evaluation_sensitivity.py --short    one seed, one epoch, fewer images

Writes results/evaluation_sensitivity.json, for 10,000 images unless another number is given. What
the file holds already is not measured again.
seeds: all metrics of the original recipe, trained anew with each of ten seeds. GAN-train's
    classifiers see 10,000 images here, not the 60,000 of quality.py.
ten_images: GAN-train of ten real training images, one of each class, repeated: eight draws.
classifiers: the metrics of the two shipped generators and of real training images, by the
    evaluation classifier, by one trained with another seed, and by one of another architecture.
sizes: the same by the evaluation classifier, for fewer images, generated and real alike.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from quality import machine, read_results, write_results
from torch import nn

import cgan_utils as cg
from cgan_utils.classifier import Classifier, real_images
from cgan_utils.evaluation import METRICS, gan_test, gan_train

RESULTS = Path(__file__).parent / "results" / "evaluation_sensitivity.json"
SIZES = (1000, 2000, 5000, 10_000)
COUNT = SIZES[-1]
CPU = torch.device("cpu")


class MLP(Classifier):
    """An evaluation classifier without convolutions; its features are 128 numbers, too."""

    def __init__(self):
        super().__init__()
        widths = (784, 512, 512, 128)
        layers = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)


def train_mlp(images, labels, epochs=10):
    torch.manual_seed(0)
    classifier = MLP()
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    steps = epochs * -(-len(images) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(256):
            loss = F.cross_entropy(classifier(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def numbers(metrics):
    return {name: round(metrics[name], 5) for name in METRICS if name in metrics}


def measure_seed(seed, epochs, classifier, train, test):
    """Return all metrics of the original recipe, trained with this seed."""
    config = cg.CGANConfig.original().replace(epochs=epochs)
    data, labels = cg.load_fashion_mnist("train"), train[1][:COUNT]
    state = cg.train(config, data, "cpu", seed=seed, progress=False)
    images = cg.sample(state, labels, seed)
    learned = cg.train_classifier(images, labels, seed, progress=False)
    metrics = cg.compute_metrics(classifier, images, labels) | gan_train(learned, *test)
    print("seed", seed, numbers(metrics), flush=True)
    return numbers(metrics)


def measure_ten_images(draws, train, test):
    """Return GAN-train of one real training image of each class, repeated, for each draw."""
    images, labels = (part[:COUNT] for part in train)
    accuracies = []
    for draw in range(draws):
        ten = images[10 * draw : 10 * draw + 10]  # labelled 0, 1, ... 9, like all tens
        repeated = ten.repeat(COUNT // 10, 1, 1, 1)
        learned = cg.train_classifier(repeated, labels, seed=draw, progress=False)
        accuracies.append(round(gan_train(learned, *test)["gan_train"], 5))
    print("ten images", accuracies, flush=True)
    return accuracies


def measure_sets(classifier, sets, size=COUNT):
    """Return the metrics of the first images of each set, and of as many real test images."""
    found = {}
    for name, (images, labels) in sets.items():
        metrics = cg.compute_metrics(classifier, images[:size], labels[:size])
        found[name] = numbers(metrics)
        print(size, name, found[name], flush=True)
    return found


def measure_evaluation(classifier, train, test, short):
    """Return what the metrics of the same images depend on."""
    seen, labels = (part[:COUNT] for part in train)
    sets = {
        name: (cg.sample(cg.load_pretrained(name), labels, seed=0), labels)
        for name in ("original", "tuned")
    }
    sets["real"] = seen, labels
    train_on = (seen[:2000], labels[:2000]) if short else train
    classifiers = {
        "evaluation classifier": classifier,
        "another seed": cg.train_classifier(*train_on, seed=1, progress=False),
        "MLP": train_mlp(*train_on),
    }
    sizes = SIZES[:1] if short else SIZES
    level = gan_train(cg.train_classifier(seen, labels, progress=False), *test)
    return {
        "ten_images": measure_ten_images(1 if short else 8, train, test),
        "classifiers": {
            name: {
                "accuracy": round(gan_test(each, *test)["gan_test"], 5),
                **measure_sets(each, sets, sizes[-1]),
            }
            for name, each in classifiers.items()
        },
        "sizes": {str(size): measure_sets(classifier, sets, size) for size in sizes},
        "gan_train_of_real_images": round(level["gan_train"], 5),
        "machine": machine("cpu"),
    }


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    train, test = real_images("train", CPU), real_images("test", CPU)
    classifier = cg.load_classifier("cpu", progress=False)
    results = read_results(output) or measure_evaluation(classifier, train, test, short)
    write_results(output, results)
    epochs, seeds = (1, range(1)) if short else (10, range(10))
    runs = results.setdefault("seeds", {})
    for seed in map(str, seeds):
        if seed not in runs:
            runs[seed] = measure_seed(int(seed), epochs, classifier, train, test)
            write_results(output, results)


if __name__ == "__main__":
    tyro.cli(main)

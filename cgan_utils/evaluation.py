"""Metrics of a generator, each beside the value that real images reach.

A small classifier, trained on the real training set, predicts the class of each image, and its
features, the 128 outputs before its last layer, are compared. No single metric is enough: GAN-test
cannot see missing variety, GAN-train cannot tell poor images from poor labels, and the Fréchet
distance, density and coverage ignore the labels.
"""

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.image.fid import FrechetInceptionDistance

from ._checks import check_count, check_tensor, check_type
from .classifier import (
    Classifier,
    check_images,
    extract_features,
    load_classifier,
    real_classifier,
    real_images,
    train_classifier,
)
from .config import FASHION_MNIST_CLASSES
from .models import Generator
from .sampling import MAX_SEED, generator_of, sample
from .state import TrainingState

METRIC_IMAGES = 10_000  # as many as real test images, and with as many of each class

METRICS = {  # key in a report -> name in a table
    "gan_test": "GAN-test",
    "gan_train": "GAN-train",
    "frechet": "Fréchet distance",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
}


def evaluate(
    generator: Generator | TrainingState,
    seed: int = 0,
    *,
    gan_train_images: int = 60_000,
    progress: bool = True,
) -> dict:
    """Measure a FashionMNIST generator and return a dict of plain numbers, ready for JSON.

    generator: a Generator, or a TrainingState, whose moving average is used if it has one.
    seed: fixes the noise vectors and the GAN-train classifier; the evaluation classifier does not
        depend on it.
    gan_train_images: 60,000, as many as real training images; fewer are faster and lower gan_train,
        for real images too.

    The metrics, defined by the functions below. Higher is better in gan_test (with `confusion`,
    which counts the class asked for (row) against the class predicted (column)), gan_train and
    coverage, which lie in [0, 1]; in diversity, which is 1 for real images; and in density, which
    exceeds 1 for images more typical than real ones. Lower is better in frechet, which is 0 or
    more. `..._per_class` maps class names to values, and the overall value is their mean.

    report["real"] holds the same metrics of real images, the value to reach: gan_test and confusion
    of the test images, which the classifier was not trained on, the others of training images in
    place of generated ones.

    The evaluation classifier is trained once and kept in the runs folder. On one machine's CPU the
    same seed gives the same report. Raises TypeError or ValueError for a generator that cannot be
    measured, and RuntimeError if the classifier is not accurate enough.
    """
    generator = generator_of(generator)
    _check_arguments(generator.config, seed, gan_train_images)
    device = generator.embedding.weight.device
    classifier = load_classifier(device, progress)
    test = real_images("test", device)
    train_images, labels = (part[:gan_train_images] for part in real_images("train", device))
    images = sample(generator, labels, seed)
    if not images.isfinite().all():
        raise ValueError("generator makes images with NaN or infinity; they cannot be measured")
    trained_on_generated = train_classifier(images, labels, seed, progress=progress)
    trained_on_real = real_classifier(gan_train_images, device, progress)

    images, train_images, labels = (t[:METRIC_IMAGES] for t in (images, train_images, labels))
    return {
        **gan_test(classifier, images, labels),
        **gan_train(trained_on_generated, *test),
        **distribution_metrics(classifier, images, labels, *test),
        "real": {
            **gan_test(classifier, *test),
            **gan_train(trained_on_real, *test),
            **distribution_metrics(classifier, train_images, labels, *test),
        },
        "seed": seed,
        "classifier_seed": 0,
        "images": {
            "generated": METRIC_IMAGES,
            "real_test": len(test[0]),
            "gan_train": gan_train_images,
        },
    }


def compute_metrics(classifier: Classifier, images: Tensor, labels: Tensor) -> dict:
    """Compute the metrics of `evaluate` except GAN-train for any images, within seconds.

    images float32 (N, 1, 28, 28) in [-1, 1]; labels int64 (N,) they were asked for, each class
    twice or more. They are compared with N real test images (at most all 10,000). The Fréchet
    distance, coverage and density depend on N: compare only values of the same N.

    Raises TypeError or ValueError, naming the argument, for anything else.
    """
    check_type("classifier", classifier, Classifier)
    check_images(images, labels)
    counts = labels.bincount(minlength=len(FASHION_MNIST_CLASSES))
    if counts.min() < 2:
        rare = FASHION_MNIST_CLASSES[counts.argmin()]
        raise ValueError(f"labels must have each class twice or more; got {counts.min()} {rare}")
    real, real_labels = (part[: len(images)] for part in real_images("test", images.device))
    return {
        **gan_test(classifier, images, labels),
        **distribution_metrics(classifier, images, labels, real, real_labels),
    }


def format_report(report: dict) -> str:
    """Format the report of `evaluate` as a text table; values for real images in brackets."""
    check_type("report", report, dict)
    if missing := [name for name in (*METRICS, "confusion", "real") if name not in report]:
        raise ValueError(f"report must come from `evaluate`; it has no {', '.join(missing)}")
    real = report["real"]
    lines = [f"{'':18}{'generated':>10}{'real':>10}"]
    for metric, name in METRICS.items():
        lines.append(f"{name:18}{report[metric]:10.3f}{real[metric]:10.3f}")
    metrics = [metric for metric in METRICS if f"{metric}_per_class" in report]
    lines += ["", " " * 12 + "".join(f"{METRICS[metric]:>16}" for metric in metrics)]
    for name in FASHION_MNIST_CLASSES:
        cells = (
            f"{report[key][name]:8.3f} ({real[key][name]:.3f})"
            for key in (f"{metric}_per_class" for metric in metrics)
        )
        lines.append(f"{name:12}" + "".join(cells))
    lines += ["", "asked (row), predicted by the classifier (column)"]
    for name, row in zip(FASHION_MNIST_CLASSES, report["confusion"], strict=True):
        lines.append(f"{name:12}" + "".join(f"{count:6}" for count in row))
    return "\n".join(lines)


def gan_test(classifier: Classifier, images: Tensor, labels: Tensor) -> dict:
    """Compute GAN-test: the classifier's accuracy on images, against the labels asked for.

    It falls when images look like another class or like none; one good image per class, repeated,
    is enough to make it 1. Shmelkov et al. 2018 (arXiv 1807.09499), section 3.
    """
    _, predicted = extract_features(classifier, images)
    counts = multiclass_confusion_matrix(predicted, labels, len(FASHION_MNIST_CLASSES))
    return _per_class("gan_test", predicted == labels, labels) | {"confusion": counts.tolist()}


def gan_train(classifier: Classifier, test_images: Tensor, test_labels: Tensor) -> dict:
    """Compute GAN-train: the accuracy on real test images of a classifier of generated images.

    The classifier was trained on generated images only. GAN-train falls when labels are not obeyed,
    when images are poor, and when they lack the variety of real ones. Shmelkov et al. 2018 (arXiv
    1807.09499), section 3; Ravuri & Vinyals 2019 (arXiv 1905.10887) call it Classification Accuracy
    Score.
    """
    _, predicted = extract_features(classifier, test_images)
    return _per_class("gan_train", predicted == test_labels, test_labels)


def distribution_metrics(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
) -> dict:
    """Compute Fréchet distance, density, coverage and diversity against the real test images.

    diversity: the mean distance between the features of two images of one class, divided by the
    same for real images; 0 = one image repeated. An image of the wrong class adds to it: read it
    only together with GAN-test.
    """
    features, _ = extract_features(classifier, images)
    real, _ = extract_features(classifier, test_images)
    density, covered = density_and_coverage(real, features)
    diversity = {
        name: _spread(features[labels == y]) / _spread(real[test_labels == y])
        for y, name in enumerate(FASHION_MNIST_CLASSES)
    }
    return {
        "frechet": frechet_distance(real, features),
        "density": density,
        **_per_class("coverage", covered, test_labels),
        "diversity": _mean(diversity),
        "diversity_per_class": diversity,
    }


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Compute the Fréchet distance between Gaussians fitted to features, float (N, F) and (M, F).

    |m - m_w|^2 + Tr(C + C_w - 2 (C C_w)^(1/2)), with m, C the means and covariances: Heusel et al.
    2017 (arXiv 1706.08500), equation 6. There the features are those of a network trained on
    ImageNet, here our classifier's: the values must not be compared with published ones.

    Raises TypeError or ValueError, naming the argument, for fewer than two rows, features of
    different lengths, NaN or infinity.
    """
    _check_features("real", real, "F", minimum=2)
    _check_features("generated", generated, real.shape[1], minimum=2)
    identity = nn.Identity()  # in place of the metric's own network: these are features already
    identity.num_features = real.shape[1]
    metric = FrechetInceptionDistance(identity).to(real.device).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(metric.compute().item(), 0.0)  # rounding can take it just below 0


def density_and_coverage(real: Tensor, generated: Tensor, k: int = 5) -> tuple[float, Tensor]:
    """Return density and which real images are covered, bool (N,); coverage is the mean of these.

    B_i is the ball around real image x_i that reaches to its k-th nearest real neighbour; y_j is a
    generated image.
    density = 1/(kM) sum over j and i of [y_j in B_i]: the balls around an image, divided by k.
    coverage = 1/N sum over i of [some y_j in B_i]: the share of balls that hold an image.
    Naeem et al. 2020 (arXiv 2002.09797), section 3.

    real, generated: features, float (N, F) and (M, F), N > k, compared in the dtype of `real`;
    others raise TypeError or ValueError. Distances are computed for 1000 rows at a time: 40 MB each
    for 10,000 images.
    """
    check_count("k", k)
    _check_features("real", real, "F", minimum=k + 1)
    _check_features("generated", generated, real.shape[1])
    generated = generated.to(real.dtype)
    inside = []  # for each real image, the number of generated ones in its ball
    for centres in real.split(1000):
        nearest = torch.cdist(centres, real).topk(k + 1, largest=False).values  # itself, then k
        inside.append((torch.cdist(centres, generated) < nearest[:, -1:]).sum(dim=1))
    inside = torch.cat(inside)
    return inside.sum().item() / (k * len(generated)), inside > 0


def _spread(features):
    """Return the mean distance between two of the rows of float (N, F)."""
    return torch.pdist(features).mean().item()


def _per_class(metric, hits, labels):
    """Return the share of True among bools (N,), for each class and as the mean of the classes."""
    shares = {
        name: hits[labels == y].double().mean().item()
        for y, name in enumerate(FASHION_MNIST_CLASSES)
    }
    return {metric: _mean(shares), f"{metric}_per_class": shares}


def _mean(per_class):
    return sum(per_class.values()) / len(per_class)


def _check_features(name, features, columns, minimum=1):
    check_tensor(name, features, "float", "N", columns)
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    if len(features) < minimum:
        raise ValueError(f"{name} must have at least {minimum} rows; got {len(features)}")


def _check_arguments(config, seed, gan_train_images):
    if (config.classes, config.image_shape) != (FASHION_MNIST_CLASSES, (1, 28, 28)):
        raise ValueError(
            "generator must make 1 x 28 x 28 images of FashionMNIST's classes, the only ones that "
            f"the classifier knows; got {config.image_shape} images of {', '.join(config.classes)}"
        )
    check_count("seed", seed, minimum=0, maximum=MAX_SEED)
    check_count("gan_train_images", gan_train_images, minimum=METRIC_IMAGES, maximum=60_000)

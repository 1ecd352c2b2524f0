"""Does the generator do what it is asked? Figures, each beside what real images reach.

The judge is a small classifier trained on the real training set; images are compared by its class
and by its features, the 128 numbers before its last layer. No single figure is enough: GAN-test
cannot see missing variety, GAN-train cannot tell poor images from poor labels, and the Fréchet
distance, density and coverage do not look at labels at all.
"""

import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.image.fid import FrechetInceptionDistance

from .config import FASHION_MNIST_CLASSES, check_count, check_tensor, check_type
from .judge import (
    Classifier,
    check_images,
    load_judge,
    look,
    real_classifier,
    real_images,
    train_classifier,
)
from .models import Generator
from .sampling import MAX_SEED, sample

JUDGED_IMAGES = 10_000  # as many as real test images, and with as many of each class

FIGURES = {  # and how they are called in a table
    "gan_test": "GAN-test",
    "gan_train": "GAN-train",
    "frechet": "Fréchet distance",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
}


def evaluate(generator, seed=0, *, gan_train_images=60_000, progress=True):
    """Measure a FashionMNIST generator -> a dict of plain numbers, ready for JSON.

    From 0 up to 1: gan_test, with `confusion` counting the class asked for (row) against the class
    seen (column); gan_train; coverage; diversity (1 for real images). density: up to about 1, and
    above it for images more typical than real ones. Towards 0: frechet. The functions below define
    them. `..._per_class` maps class names to values; the overall value is their mean.

    report["real"] holds the same figures for real images, which are the ceilings (frechet's floor):
    gan_test and confusion for the test images, which the judge was not trained on, the others for
    training images in place of the generated ones.

    seed: fixes the noise vectors and GAN-train's classifier, not the judge, which stays the same.
    gan_train_images: 60,000, as many as real training images; fewer are faster and lower gan_train,
    for real images too.

    The judge is trained once and kept in the runs folder. On one machine's CPU the same seed gives
    the same report. Raises TypeError or ValueError for a generator that cannot be judged, and
    RuntimeError if the judge is not accurate enough.
    """
    _check_arguments(generator, seed, gan_train_images)
    device = generator.embedding.weight.device
    judge = load_judge(device, progress)
    test = real_images("test", device)
    train_images, labels = (part[:gan_train_images] for part in real_images("train", device))
    images = sample(generator, labels, seed)
    if not images.isfinite().all():
        raise ValueError("generator makes images with NaN or infinity; they cannot be judged")
    student = train_classifier(images, labels, seed, progress=progress)
    real_student = real_classifier(gan_train_images, device, progress)

    images, train_images, labels = (t[:JUDGED_IMAGES] for t in (images, train_images, labels))
    return {
        **gan_test(judge, images, labels),
        **gan_train(student, *test),
        **likeness(judge, images, labels, *test),
        "real": {
            **gan_test(judge, *test),
            **gan_train(real_student, *test),
            **likeness(judge, train_images, labels, *test),
        },
        "seed": seed,
        "judge_seed": 0,
        "images": {
            "generated": JUDGED_IMAGES,
            "real_test": len(test[0]),
            "gan_train": gan_train_images,
        },
    }


def judge_images(judge, images, labels):
    """What can be said of any images in seconds: `evaluate`'s figures except GAN-train.

    images float32 (N, 1, 28, 28) in [-1, 1], labels int64 (N,) they were asked for, each class
    twice or more; others raise, and so does a judge that is no `Classifier`. They are compared with
    N real test images (at most all 10,000). The Fréchet distance, coverage and density depend on N:
    compare only figures of the same N.
    """
    check_type("judge", judge, Classifier)
    check_images(images, labels)
    counts = labels.bincount(minlength=len(FASHION_MNIST_CLASSES))
    if counts.min() < 2:
        rare = FASHION_MNIST_CLASSES[counts.argmin()]
        raise ValueError(f"labels must have each class twice or more; got {counts.min()} {rare}")
    real, real_labels = (part[: len(images)] for part in real_images("test", images.device))
    return {
        **gan_test(judge, images, labels),
        **likeness(judge, images, labels, real, real_labels),
    }


def format_report(report):
    """The report of `evaluate` as a text table; values for real images in brackets."""
    check_type("report", report, dict)
    if missing := [name for name in (*FIGURES, "confusion", "real") if name not in report]:
        raise ValueError(f"report must come from `evaluate`; it has no {', '.join(missing)}")
    real = report["real"]
    lines = [f"{'':18}{'generated':>10}{'real':>10}"]
    for figure, name in FIGURES.items():
        lines.append(f"{name:18}{report[figure]:10.3f}{real[figure]:10.3f}")
    figures = [figure for figure in FIGURES if f"{figure}_per_class" in report]
    lines += ["", " " * 12 + "".join(f"{FIGURES[figure]:>16}" for figure in figures)]
    for name in FASHION_MNIST_CLASSES:
        cells = (
            f"{report[key][name]:8.3f} ({real[key][name]:.3f})"
            for key in (f"{figure}_per_class" for figure in figures)
        )
        lines.append(f"{name:12}" + "".join(cells))
    lines += ["", "asked (row), seen by the judge (column)"]
    for name, row in zip(FASHION_MNIST_CLASSES, report["confusion"], strict=True):
        lines.append(f"{name:12}" + "".join(f"{count:6}" for count in row))
    return "\n".join(lines)


def gan_test(judge, images, labels):
    """GAN-test: the judge's accuracy on generated images, against the labels they were asked for.

    Shmelkov et al. 2018 (arXiv 1807.09499), section 3. It falls when images look like another
    class or like none; one good image per class, repeated, is enough to make it 1.
    """
    _, seen = look(judge, images)
    counts = multiclass_confusion_matrix(seen, labels, len(FASHION_MNIST_CLASSES))
    return _per_class("gan_test", seen == labels, labels) | {"confusion": counts.tolist()}


def gan_train(student, test_images, test_labels):
    """GAN-train: accuracy on real test images of a classifier trained on generated images only.

    Shmelkov et al. 2018 (arXiv 1807.09499), section 3; Ravuri & Vinyals 2019 (arXiv 1905.10887)
    call it Classification Accuracy Score. It falls when labels are not obeyed, when images are
    poor, and when they lack the variety of real ones.
    """
    _, seen = look(student, test_images)
    return _per_class("gan_train", seen == test_labels, test_labels)


def likeness(judge, images, labels, test_images, test_labels):
    """Fréchet distance, density, coverage and diversity of images against the real test images.

    diversity: the mean distance between the features of two images of one class, divided by the
    same for real images; 0 = one image repeated. A wrong class counts as variety: read it only
    together with GAN-test.
    """
    features, _ = look(judge, images)
    real, _ = look(judge, test_images)
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


def frechet_distance(real, generated):
    """Fréchet distance between Gaussians fitted to two sets of features, float (N, F) and (M, F).

    Each needs two rows or more, and raises otherwise.

    |m - m_w|^2 + Tr(C + C_w - 2 (C C_w)^(1/2)): Heusel et al. 2017 (arXiv 1706.08500), equation 6,
    with m, C the means and covariances. There the features are those of a network trained on
    ImageNet, here our judge's: the numbers here must not be compared with those published.
    """
    _check_features("real", real, "F", minimum=2)
    _check_features("generated", generated, real.shape[1], minimum=2)
    identity = nn.Identity()  # in place of the metric's own network: these are features already
    identity.num_features = real.shape[1]
    metric = FrechetInceptionDistance(identity).to(real.device).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(metric.compute().item(), 0.0)  # rounding can take it just below 0


def density_and_coverage(real, generated, k=5):
    """Density, a float, and which of the real images are covered, bool (N,); coverage is its mean.

    Naeem et al. 2020 (arXiv 2002.09797), section 3. B_i is the ball around real image x_i that
    reaches to its k-th nearest real neighbour; y_j is a generated image.
    density = 1/(kM) sum over j and i of [y_j in B_i]: how many balls hold an image, divided by k.
    coverage = 1/N sum over i of [some y_j in B_i]: the share of balls that hold one.

    real, generated: features, float (N, F) and (M, F), N > k, compared in the dtype of `real`.
    Distances are made 1000 rows at a time: 40 MB each for 10,000 images.
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
    """The mean distance between two of the rows of float (N, F)."""
    return torch.pdist(features).mean().item()


def _per_class(figure, hits, labels):
    """The share of True among bools (N,), for each class and as the mean of the classes."""
    shares = {
        name: hits[labels == y].double().mean().item()
        for y, name in enumerate(FASHION_MNIST_CLASSES)
    }
    return {figure: _mean(shares), f"{figure}_per_class": shares}


def _mean(per_class):
    return sum(per_class.values()) / len(per_class)


def _check_features(name, features, columns, minimum=1):
    check_tensor(name, features, "float", "N", columns)
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    if len(features) < minimum:
        raise ValueError(f"{name} must have at least {minimum} rows; got {len(features)}")


def _check_arguments(generator, seed, gan_train_images):
    check_type("generator", generator, Generator)
    config = generator.config
    if (config.classes, config.image_shape) != (FASHION_MNIST_CLASSES, (1, 28, 28)):
        raise ValueError(
            "generator must make FashionMNIST's classes, 1 x 28 x 28: the judge knows no others; "
            f"got {config.image_shape} images of {', '.join(config.classes)}"
        )
    check_count("seed", seed, minimum=0, maximum=MAX_SEED)
    check_count("gan_train_images", gan_train_images, minimum=JUDGED_IMAGES, maximum=60_000)

"""Metrics of a generator, each beside the value that real images reach.

A small classifier, trained on real images, predicts the class of each image, and its features, the
128 outputs before its last layer, are compared. No single metric is enough: GAN-test cannot see
missing variety, GAN-train cannot tell poor images from poor labels, and the Fréchet distance of all
images, precision, recall, density and coverage ignore the labels.
"""

import warnings
from functools import partial

import torch
from torch import Tensor, nn

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
from .data import LabelledImages, normalize
from .models import Generator
from .sampling import MAX_SEED, generator_of, sample
from .state import TrainingState

METRIC_IMAGES = 10_000  # of FashionMNIST: as many as real test images
HELD_OUT = 5  # one of so many images of your own, of each class, is a test image
MIN_IMAGES = 50  # of each class: 10 are held out, so that an accuracy has steps of 0.1
MIN_WITHIN = 50  # of each class; of 10, real ones are as far apart as from one image repeated
LONGEST_NAME = 30  # in a table; a longer one is cut

METRICS = {  # key in a report -> name in a table
    "gan_test": "GAN-test",
    "gan_train": "GAN-train",
    "frechet": "Fréchet distance",
    "frechet_within": "class Fréchet",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
}


def evaluate(
    generator: Generator | TrainingState,
    seed: int = 0,
    data: LabelledImages | None = None,
    *,
    gan_train_images: int | None = None,
    progress: bool = True,
) -> dict:
    """Measure a generator and return a dict of plain numbers, ready for JSON.

    generator: a Generator, or a TrainingState, whose moving average is used if it has one.
    seed: fixes the noise vectors and the GAN-train classifier; the evaluation classifier does not
        depend on it.
    data: the images that the generator was trained on, 50 or more of each class; None is
        FashionMNIST.
    gan_train_images: for FashionMNIST. None is 60,000, as many as real training images; fewer are
        faster and lower gan_train, for real images too.

    The metrics, defined by the functions below. Higher is better in gan_test (with `confusion`,
    which counts the class asked for (row) against the class predicted (column)), gan_train,
    precision, recall and coverage, which lie in [0, 1]; in diversity, which is 1 for real images;
    and in density, which exceeds 1 for images more typical than real ones. Lower is better in
    frechet, of all images together, and frechet_within, the mean of the same within each class;
    they are 0 or more. `..._per_class` maps class names to values, and the overall value is their
    mean.

    report["real"] holds the same metrics of real images, the value to reach: gan_test and confusion
    of the test images, which the classifier was not trained on, the others of training images in
    place of generated ones.

    FashionMNIST's evaluation classifier is trained once and kept in the runs folder. Of `data`, a
    fifth of each class, always the same images, is held out as test images, and the others train
    the evaluation classifier. The generator, however, was trained on all of them: one that repeats
    its training images reaches the level of real images or more, and no metric here tells. The
    classifier knows few images by heart, which makes them alike to it: the diversity of real images
    is then below 1 (0.9 for 300 images of each class of FashionMNIST).

    frechet, precision, recall and density are of all images together, so the largest class counts
    most. They, frechet_within and coverage depend on the number of images: compare only values for
    the same data. frechet_within is None if a class has fewer than 50 test images, for then it says
    little: 10 real images are as far from 10 others as from one image repeated.

    On one machine's CPU the same seed gives the same report. Raises TypeError or ValueError for a
    generator that cannot be measured or for data that do not fit it, and RuntimeError if
    FashionMNIST's classifier is not accurate enough. Warns if the classifier of `data` is hardly
    better than chance, as the metrics then mean little.
    """
    generator = generator_of(generator)
    check_count("seed", seed, minimum=0, maximum=MAX_SEED)
    device = generator.embedding.weight.device
    (train_images, labels), test = _real_images(generator.config, data, gan_train_images, device)
    images = sample(generator, labels, seed)
    if not images.isfinite().all():
        raise ValueError("generator makes images with NaN or infinity; they cannot be measured")
    train = partial(
        train_classifier,
        classes=generator.config.classes,
        balanced=data is not None,
        progress=progress,
    )
    if data is None:
        classifier = load_classifier(device, progress)
        trained_on_real = real_classifier(len(labels), device, progress)
    else:
        classifier = trained_on_real = train(train_images, labels)
    trained_on_generated = train(images, labels, seed)

    gan_train_count, count = len(labels), len(test[0])
    images, train_images, labels = (t[:count] for t in (images, train_images, labels))
    report = {
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
        "images": {"generated": count, "real_test": count, "gan_train": gan_train_count},
    }
    _warn_of_a_poor_classifier(report["real"]["gan_test"], len(classifier.classes))
    return report


def compute_metrics(
    classifier: Classifier, images: Tensor, labels: Tensor, real: LabelledImages | None = None
) -> dict:
    """Compute the metrics of `evaluate` except GAN-train for any images, within seconds.

    images float32 (N, C, H, W) in [-1, 1]; labels int64 (N,) they were asked for, each class
    twice or more. They are compared with `real`, images that the classifier was not trained on, or,
    if it is None, with N of FashionMNIST's test images (at most all 10,000). All but GAN-test and
    diversity depend on both numbers of images: compare only values of the same. frechet_within is
    None if a class has fewer than 50 images on either side.

    Raises TypeError or ValueError, naming the argument, for anything else.
    """
    check_type("classifier", classifier, Classifier)
    shape, classes = classifier.image_shape, classifier.classes
    check_images(images, labels, shape, classes)
    _check_counts("labels", labels, classes, minimum=2)
    if real is None:
        _check_fashion_mnist("real", shape, classes)
        test = (part[: len(images)] for part in real_images("test", images.device))
    else:
        _check_data("real", real, shape, classes, minimum=2)
        test = _tensors(real, images.device)
    return {
        **gan_test(classifier, images, labels),
        **distribution_metrics(classifier, images, labels, *test),
    }


def format_report(report: dict) -> str:
    """Format the report of `evaluate` as a text table; values for real images in brackets.

    A metric that was not measured is left out.
    """
    check_type("report", report, dict)
    needed = ("gan_test_per_class", "confusion", "real")
    if missing := [name for name in needed if name not in report]:
        raise ValueError(f"report must come from `evaluate`; it has no {', '.join(missing)}")
    real = report["real"]
    names = list(report["gan_test_per_class"])
    width = min(max(map(len, names)), LONGEST_NAME) + 1
    heads = [f"{name if len(name) < width else name[: width - 2] + '…':{width}}" for name in names]
    lines = [f"{'':18}{'generated':>10}{'real':>10}"]
    measured = [metric for metric in METRICS if report.get(metric) is not None]
    for metric in measured:
        lines.append(f"{METRICS[metric]:18}{report[metric]:10.3f}{real[metric]:10.3f}")
    columns = []
    for metric in measured:
        if (key := f"{metric}_per_class") in report:
            cells = [f"{report[key][name]:.2f} ({real[key][name]:.2f})" for name in names]
            column = [METRICS[metric], *cells]
            columns.append([f"{cell:>{max(map(len, column)) + 2}}" for cell in column])
    lines.append("")
    lines += ["".join(row) for row in zip([" " * width, *heads], *columns, strict=True)]
    lines += ["", "asked (row), predicted by the classifier (column)"]
    for head, row in zip(heads, report["confusion"], strict=True):
        lines.append(head + "".join(f"{count:6}" for count in row))
    return "\n".join(lines)


def gan_test(classifier: Classifier, images: Tensor, labels: Tensor) -> dict:
    """Compute GAN-test: the classifier's accuracy on images, against the labels asked for.

    It falls when images look like another class or like none; one good image per class, repeated,
    is enough to make it 1. Shmelkov et al. 2018 (arXiv 1807.09499), section 3.
    """
    # torchmetrics takes a second to import, so only those wait for it who measure.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    _, predicted = extract_features(classifier, images)
    counts = multiclass_confusion_matrix(predicted, labels, len(classifier.classes))
    shares = _per_class("gan_test", predicted == labels, labels, classifier.classes)
    return shares | {"confusion": counts.tolist()}


def gan_train(classifier: Classifier, test_images: Tensor, test_labels: Tensor) -> dict:
    """Compute GAN-train: the accuracy on real test images of a classifier of generated images.

    The classifier was trained on generated images only. GAN-train falls when labels are not obeyed,
    when images are poor, and when they lack the variety of real ones. Shmelkov et al. 2018 (arXiv
    1807.09499), section 3; Ravuri & Vinyals 2019 (arXiv 1905.10887) call it Classification Accuracy
    Score.
    """
    _, predicted = extract_features(classifier, test_images)
    return _per_class("gan_train", predicted == test_labels, test_labels, classifier.classes)


def distribution_metrics(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
) -> dict:
    """Compute the metrics that compare classifier features with those of the real test images.

    frechet_within: the mean of the Fréchet distances within each class, where labels count. Miyato
    & Koyama 2018 (arXiv 1802.05637) call it intra FID.
    diversity: the mean distance between the features of two images of one class, divided by the
    same for real images; 0 = one image repeated. An image of the wrong class adds to it: read it
    only together with GAN-test.
    """
    features, _ = extract_features(classifier, images)
    real, _ = extract_features(classifier, test_images)
    precision, recall = precision_and_recall(real, features)
    density, covered = density_and_coverage(real, features)
    pairs = {
        name: (real[test_labels == y], features[labels == y])
        for y, name in enumerate(classifier.classes)
    }
    diversity = {name: _spread(ours) / _spread(theirs) for name, (theirs, ours) in pairs.items()}
    enough = min(len(part) for pair in pairs.values() for part in pair) >= MIN_WITHIN
    within = {name: frechet_distance(*pair) if enough else None for name, pair in pairs.items()}
    return {
        "frechet": frechet_distance(real, features),
        "frechet_within": _mean(within) if enough else None,
        "frechet_within_per_class": within,
        "precision": precision,
        "recall": recall,
        "density": density,
        **_per_class("coverage", covered, test_labels, classifier.classes),
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
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check_features("real", real, "F", minimum=2)
    _check_features("generated", generated, real.shape[1], minimum=2)
    identity = nn.Identity()  # in place of the metric's own network: these are features already
    identity.num_features = real.shape[1]
    metric = FrechetInceptionDistance(identity).to(real.device).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(metric.compute().item(), 0.0)  # rounding can take it just below 0


def precision_and_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Return precision and recall.

    The ball around an image reaches to its k-th nearest neighbour among the images of its own kind.
    precision: the share of generated images that lie in the ball of some real image.
    recall: the share of real images that lie in the ball of some generated image.
    Kynkäänniemi et al. 2019 (arXiv 1904.06991), section 2.

    real, generated: features, float (N, F) and (M, F), N and M > k; the rest as for
    `density_and_coverage`.
    """
    _check_neighbours(real, generated, k, fewest_generated=k + 1)
    generated = generated.to(real.dtype)
    shares = []
    for centres, points in ((real, generated), (generated, real)):
        reached = torch.stack([balls.any(dim=0) for balls in _inside(centres, points, k)])
        shares.append(reached.any(dim=0).double().mean().item())
    return tuple(shares)


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
    _check_neighbours(real, generated, k, fewest_generated=1)
    generated = generated.to(real.dtype)
    held = torch.cat([balls.sum(dim=1) for balls in _inside(real, generated, k)])  # by each ball
    return held.sum().item() / (k * len(generated)), held > 0


def _inside(centres, points, k):
    """Yield which points lie in each centre's ball: bool (<= 1000, M), for 1000 centres at a time.

    The ball around a centre reaches to its k-th nearest neighbour among the centres.
    """
    for some in centres.split(1000):
        nearest = torch.cdist(some, centres).topk(k + 1, largest=False).values  # itself, then k
        yield torch.cdist(some, points) < nearest[:, -1:]


def _check_neighbours(real, generated, k, fewest_generated):
    check_count("k", k)
    _check_features("real", real, "F", minimum=k + 1)
    _check_features("generated", generated, real.shape[1], minimum=fewest_generated)


def _spread(features):
    """Return the mean distance between two of the rows of float (N, F)."""
    return torch.pdist(features).mean().item()


def _per_class(metric, hits, labels, classes):
    """Return the share of True among bools (N,), for each class and as the mean of the classes."""
    shares = {name: hits[labels == y].double().mean().item() for y, name in enumerate(classes)}
    return {metric: _mean(shares), f"{metric}_per_class": shares}


def _mean(per_class):
    return sum(per_class.values()) / len(per_class)


def _check_features(name, features, columns, minimum=1):
    check_tensor(name, features, "float", "N", columns)
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    if len(features) < minimum:
        raise ValueError(f"{name} must have at least {minimum} rows; got {len(features)}")


# --- real images, and what must be true of them -------------------------------------------------


def _real_images(config, data, gan_train_images, device):
    """Return (images, labels) of training images and of test images; check the arguments first.

    The first of the training images are as many of each class as the test images.
    """
    if data is None:
        _check_fashion_mnist("data", config.image_shape, config.classes)
        count = 60_000 if gan_train_images is None else gan_train_images
        check_count("gan_train_images", count, minimum=METRIC_IMAGES, maximum=60_000)
        return [part[:count] for part in real_images("train", device)], real_images("test", device)
    if gan_train_images is not None:
        raise ValueError(f"gan_train_images must be None with data; got {gan_train_images}")
    if len(config.classes) == 1:
        raise ValueError(f"generator must have classes to tell apart; got one, {config.classes[0]}")
    _check_data("data", data, config.image_shape, config.classes, MIN_IMAGES)
    train, test = _hold_out(data)
    for y, name in enumerate(data.classes):
        images = test.images[test.labels == y]
        if (images == images[0]).all():
            raise ValueError(
                f"data must have different images of each class; those held out of {name} are equal"
            )
    return _tensors(train, device), _tensors(test, device)


def _hold_out(data):
    """Split data into training and test images: a fifth of each class, always the same.

    The first of the training images have the labels of the test images, in the same order.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    labels = data.labels.cpu()[order]
    parts = []
    for y in range(len(data.classes)):
        rows = order[labels == y]
        count = len(rows) // HELD_OUT
        parts.append(rows.tensor_split([count, 2 * count]))
    test, alike, rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return data[torch.cat([alike, rest])], data[test]


def _tensors(data, device):
    return normalize(data.images.to(device)), data.labels.to(device)


def _check_fashion_mnist(name, image_shape, classes):
    if (image_shape, classes) != ((1, 28, 28), FASHION_MNIST_CLASSES):
        raise ValueError(
            f"{name} must be given, unless it is FashionMNIST (1 x 28 x 28, ten classes); "
            f"got none for {image_shape} images of {', '.join(classes)}"
        )


def _check_data(name, data, image_shape, classes, minimum):
    """Raise unless these are images of this shape and these classes, enough of each."""
    check_type(name, data, LabelledImages)
    shape = tuple(data.images.shape[1:])
    if (shape, data.classes) != (image_shape, classes):
        raise ValueError(
            f"{name} must be {image_shape} images of {', '.join(classes)}; "
            f"got {shape} images of {', '.join(data.classes)}"
        )
    _check_counts(name, data.labels, classes, minimum)


def _check_counts(name, labels, classes, minimum):
    counts = zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True)
    few = [f"{count} {each}" for each, count in counts if count < minimum]
    if few:
        raise ValueError(f"{name} must have {minimum} or more of each class; got {', '.join(few)}")


def _warn_of_a_poor_classifier(accuracy, classes):
    chance = 1 / classes
    if accuracy < chance + (1 - chance) / 4:
        warnings.warn(
            f"the evaluation classifier is right for {accuracy:.0%} of the held-out images, with "
            f"{chance:.0%} by chance: the metrics mean little. More images may help, or classes "
            "that differ more",
            stacklevel=3,
        )

"""The metrics against closed forms, values by hand, and generators whose faults are known."""

import copy
import functools
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import cgan_utils as cg
from cgan_utils import __main__ as command_line
from cgan_utils import evaluation
from cgan_utils.classifier import MIN_ACCURACY, Classifier, real_images
from cgan_utils.evaluation import METRIC_IMAGES, METRICS, distribution_metrics, gan_test

pytestmark = pytest.mark.slow  # measures thousands of images

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
ORIGINAL = cg.CGANConfig.original()
CPU = torch.device("cpu")
FEWER = 10_000  # images for GAN-train: a sixth of the time, and its differences stay clear


@pytest.fixture(scope="module")
def classifier():
    return cg.load_classifier("cpu", progress=False)


def gaussian(mean, deviations, count=20_000, seed=0):
    """A sample whose mean and covariance are exactly `mean` and diag(deviations^2)."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=rng(seed))
    x -= x.mean(dim=0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return (torch.tensor(mean) + x * torch.tensor(deviations)).double()


def rng(seed):
    return torch.Generator().manual_seed(seed)


def test_frechet_distance_of_identical_sets_is_0():
    x = gaussian([1.0, -2.0, 0.5], [1.0, 3.0, 0.2])
    assert cg.frechet_distance(x, x.clone()) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shifted_mean_is_the_squared_distance():
    x = gaussian([0.0, 0.0, 0.0], [1.0, 3.0, 0.2])
    shift = torch.tensor([3.0, 0.0, -4.0])
    assert cg.frechet_distance(x, x + shift) == pytest.approx(25)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    # For covariances diag(s^2) and diag(t^2): |m - n|^2 + sum of (s - t)^2.
    real = gaussian([0.0, 1.0], [1.0, 2.0], seed=1)
    generated = gaussian([3.0, 1.0], [2.0, 5.0], seed=2)
    assert cg.frechet_distance(real, generated) == pytest.approx(9 + 1 + 9)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=rng(3))).Q.double()
    assert cg.frechet_distance(real @ turn, generated @ turn) == pytest.approx(19)


def test_frechet_distance_of_covariances_that_do_not_commute():
    # For 2 x 2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), with A = [[2, 1], [1, 2]] and
    # B = diag(1, 4): sqrt(10 + 2 sqrt(12)), so the distance is 4 + 5 - 2 * 4.1145.
    white = gaussian([0.0, 0.0], [1.0, 1.0])
    real = white @ torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()).T
    expected = 9 - 2 * (10 + 2 * 12**0.5) ** 0.5
    assert cg.frechet_distance(real, gaussian([0.0, 0.0], [1.0, 2.0])) == pytest.approx(expected)


LINE = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # k = 1: balls of radius 1, 1, 2, 7


@pytest.mark.parametrize(
    ("generated", "density", "covered"),
    [
        ([0.5], 2, [True, True, False, False]),  # inside the first two balls
        ([0.5, 0.5], 2, [True, True, False, False]),  # repeating it changes nothing
        ([0.5, -50], 1, [True, True, False, False]),  # half of them, in no ball
        ([-50.0], 0, [False] * 4),
        ([0.1, 1.5, 2.5, 9.0], 6 / 4, [True] * 4),  # in 2, 2, 1 and 1 balls
    ],
)
def test_density_and_coverage_by_hand(generated, density, covered):
    found = cg.density_and_coverage(LINE, torch.tensor(generated).view(-1, 1), k=1)
    assert (found[0], found[1].tolist()) == (density, covered)


def test_density_divides_by_k():
    # k = 2: the radii are 3, 2, 3 and 9; 0.5 lies in the first three balls, 10 is 9.5 away.
    density, covered = cg.density_and_coverage(LINE.double(), torch.tensor([[0.5]]), k=2)
    assert density == 3 / 2
    assert covered.tolist() == [True, True, True, False]


def test_density_and_coverage_of_the_same_distribution():
    # With as many real as generated images, a real one is left uncovered if its k nearest images
    # are all real: with a probability of about 1/2^k.
    x = torch.randn(2, 4000, 8, generator=rng(0))
    density, covered = cg.density_and_coverage(*x)
    assert density == pytest.approx(1, abs=0.03)
    assert covered.float().mean().item() == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize(
    ("generated", "precision", "recall"),
    [
        ([0.5, 0.6], 1, 0),  # balls of radius 0.1 hold no real image
        ([0.5, -50.0], 1 / 2, 1),  # balls of radius 50.5 hold all
        ([2.0, 4.0], 1, 2 / 4),  # balls of radius 2 hold 1 and 3
        ([-50.0, -51.0], 0, 0),
    ],
)
def test_precision_and_recall_by_hand(generated, precision, recall):
    found = cg.precision_and_recall(LINE, torch.tensor(generated).view(-1, 1), k=1)
    assert found == (precision, recall)


def test_precision_and_recall_of_many_points_by_their_definition():
    real, generated = np.random.default_rng(0).normal(size=(2, 1300, 3))
    real, generated = real[:1100], 1.5 * generated + 0.5

    def share(points, centres):
        def distances(a, b):
            return np.linalg.norm(a[:, None] - b, axis=-1)

        radii = np.sort(distances(centres, centres), axis=1)[:, 3]
        return (distances(points, centres) < radii).any(axis=1).mean()

    found = cg.precision_and_recall(*map(torch.from_numpy, (real, generated)))
    assert found == pytest.approx((share(generated, real), share(real, generated)))
    assert 0.3 < found[0] < found[1] < 1


class Pixels(torch.nn.Module):
    """A classifier of two classes whose features are the pixels themselves."""

    classes = ("a", "b")
    features, head = torch.nn.Flatten(), torch.nn.Linear(2, 2)


def test_frechet_distance_within_classes_is_the_mean_of_the_closed_forms():
    near, far = (gaussian([x, 0.0], [1.0, 2.0], count=200) for x in (-3.0, 3.0))
    real, labels = torch.cat([near, far]), torch.arange(2).repeat_interleave(200)
    other = torch.cat([near + torch.tensor([0.0, 1.0]), gaussian([3.0, 0.0], [4.0, 6.0], 200)])
    for images, asked, within in (
        (other, labels, {"a": 1, "b": 9 + 16}),
        (real, labels, {"a": 0, "b": 0}),
        (real, 1 - labels, {"a": 36, "b": 36}),  # good images of the other class
    ):
        metrics = distribution_metrics(Pixels(), images.float(), asked, real.float(), labels)
        assert metrics["frechet_within_per_class"] == pytest.approx(within, abs=1e-3)
        assert metrics["frechet_within"] == pytest.approx(sum(within.values()) / 2, abs=1e-3)
        assert (metrics["frechet"] < 1e-3) is (images is real)  # labels do not count there


@pytest.mark.parametrize(("generated", "test"), [(50, 50), (49, 50), (50, 49)])
def test_frechet_distance_within_classes_needs_50_images_of_each(generated, test):
    parts = []
    for count in (generated, test):
        labels = torch.tensor([0] * 60 + [1] * count)
        parts += [torch.randn(len(labels), 2, generator=rng(count)), labels]
    metrics = distribution_metrics(Pixels(), *parts)
    enough = min(generated, test) == 50
    values = metrics["frechet_within"], *metrics["frechet_within_per_class"].values()
    assert [value is not None for value in values] == [enough] * 3


@pytest.mark.process
def test_density_and_coverage_of_10000_images_take_far_less_than_1_gb():
    code = """if True:
        import resource, sys, torch, cgan_utils
        assert "torchmetrics" not in sys.modules  # which makes each start a second longer
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        x = torch.randn(2, 10_000, 128)
        before = peak()
        cgan_utils.density_and_coverage(*x)
        print((peak() - before) / 1e6)  # ru_maxrss is in kB on Linux
    """
    pytest.importorskip("resource")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.3


class RealImages(cg.Generator):
    """A generator that returns real training images; z selects one of the class asked for."""

    def __init__(self, per_class=6000, obeys=True):
        super().__init__(ORIGINAL)
        images, _ = real_images("train", CPU)  # ordered 0, 1, ... 9, 0, 1, ...
        self.images = images.unflatten(0, (-1, 10))[:per_class]
        self.obeys = obeys

    def forward(self, z, labels):
        uniform = torch.special.ndtr(z[:, :2].double())
        rows = (uniform[:, 0] * len(self.images)).long()
        shown = labels if self.obeys else (uniform[:, 1] * 10).long()
        return self.images[rows, shown]


def constant_generator(value):
    """A generator whose last layer adds this to every pixel before tanh."""
    generator = cg.Generator(ORIGINAL)
    torch.nn.init.constant_(generator.layers[4].bias, value)
    return generator


def evaluate(generator):
    return cg.evaluate(generator, gan_train_images=FEWER, progress=False)


@pytest.fixture(scope="module")
def real_report(classifier):
    return evaluate(RealImages())


@pytest.fixture(scope="module")
def best_images(classifier):
    """For each class, the training image that the classifier is surest of."""
    images, labels = real_images("train", CPU)
    with torch.no_grad():
        sure = classifier(images[:10_000]).softmax(dim=1)
    return [int((sure[:, y] * (labels[:10_000] == y)).argmax()) for y in range(10)]


@pytest.mark.slow
def test_real_images_reach_their_own_level(real_report):
    real = real_report["real"]
    for metric, distance in (
        ("gan_test", 0.05),  # a little above test images: the classifier knows training images
        ("gan_train", 0.02),
        ("precision", 0.02),
        ("recall", 0.02),
        ("density", 0.05),
        ("coverage", 0.02),
        ("diversity", 0.03),
    ):
        assert real_report[metric] == pytest.approx(real[metric], abs=distance), metric
    assert real_report["frechet"] < 2 * real["frechet"]
    assert real_report["frechet_within"] < 1.5 * real["frechet_within"]
    assert real["gan_test"] >= MIN_ACCURACY
    assert real["coverage"] > 0.9
    assert real["diversity"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_generator_that_ignores_its_label_gets_a_tenth(real_report):
    report = evaluate(RealImages(obeys=False))
    assert report["gan_test"] == pytest.approx(0.1, abs=0.015)
    assert report["gan_train"] < 0.3
    # The images are as good as ever: these metrics ignore the labels ...
    assert report["frechet"] < 2 * report["real"]["frechet"]
    for metric in ("precision", "recall", "coverage"):
        assert report[metric] == pytest.approx(real_report[metric], abs=0.02)
    # ... this one does not ...
    assert report["frechet_within"] > 20 * report["real"]["frechet_within"]
    # ... and every class of them is a mixture, with more variety than any class has.
    assert min(report["diversity_per_class"].values()) > 1.1


@pytest.mark.slow
def test_one_perfect_image_per_class_fools_gan_test_alone(best_images, real_report):
    generator = RealImages(per_class=1)
    images, _ = real_images("train", CPU)
    generator.images = images[best_images][None]
    report = evaluate(generator)
    assert report["gan_test"] == 1
    assert report["gan_train"] < 0.7 < real_report["gan_train"]
    assert report["recall"] == 0
    assert report["coverage"] < 0.1
    assert report["diversity"] == pytest.approx(0, abs=1e-3)
    assert report["frechet_within"] > 20 * report["real"]["frechet_within"]
    assert report["frechet"] > 50 * report["real"]["frechet"]


@pytest.mark.slow
def test_report_holds_every_metric_and_survives_json(real_report):
    assert json.loads(json.dumps(real_report)) == real_report
    for metrics in (real_report, real_report["real"]):
        assert all(isinstance(metrics[metric], float) for metric in METRICS)
        for metric in ("gan_test", "gan_train", "frechet_within", "coverage", "diversity"):
            per_class = metrics[f"{metric}_per_class"]
            assert tuple(per_class) == cg.FASHION_MNIST_CLASSES
            assert sum(per_class.values()) / 10 == pytest.approx(metrics[metric])
        confusion = torch.tensor(metrics["confusion"])
        assert confusion.sum(dim=1).tolist() == [1000] * 10
        assert confusion.diagonal().sum().item() / 10_000 == pytest.approx(metrics["gan_test"])
    assert (real_report["seed"], real_report["classifier_seed"]) == (0, 0)
    assert real_report["images"] == {"generated": 10_000, "real_test": 10_000, "gan_train": FEWER}


@pytest.mark.slow
def test_a_generator_that_makes_only_white_is_measured(classifier, monkeypatch):
    shorter = functools.partial(cg.train_classifier, epochs=1)
    monkeypatch.setattr(evaluation, "train_classifier", shorter)
    report = evaluate(constant_generator(1e6))
    assert report["gan_test"] == pytest.approx(0.1)
    assert report["coverage"] < 0.01 and report["diversity"] == 0


@pytest.mark.slow
def test_confusion_has_the_asked_class_in_rows(classifier):
    images, labels = real_images("train", CPU)
    trousers = images[labels == 1][:20]
    report = gan_test(classifier, trousers, torch.tensor([3]).repeat(20))  # asked for dresses
    assert report["confusion"][3][1] >= 18
    assert report["gan_test_per_class"]["Dress"] <= 0.1


@pytest.mark.slow
def test_compute_metrics_of_as_many_images_gives_the_values_of_evaluate(classifier, real_report):
    images, labels = (part[:METRIC_IMAGES] for part in real_images("train", CPU))
    metrics = cg.compute_metrics(classifier, images, labels)
    for name in METRICS.keys() - {"gan_test", "gan_train"}:
        assert metrics[name] == pytest.approx(real_report["real"][name])
    assert metrics["gan_test"] == gan_test(classifier, images, labels)["gan_test"]


@pytest.mark.slow
def test_compute_metrics_compares_with_as_many_real_images(classifier):
    images, labels = (part[:2000] for part in real_images("test", CPU))
    same = cg.compute_metrics(classifier, images, labels)
    assert same["frechet"] == pytest.approx(0, abs=1e-3) and same["coverage"] == 1
    shifted = cg.compute_metrics(classifier, images, (labels + 1) % 10)
    assert shifted["gan_test"] < 0.1 and shifted["frechet"] == same["frechet"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_measures_the_same(classifier):
    images, labels = (part[:2000] for part in real_images("train", CPU))
    expected = cg.compute_metrics(classifier, images, labels)
    there = copy.deepcopy(classifier).cuda()
    metrics = cg.compute_metrics(there, images.cuda(), labels.cuda())
    for name in ("gan_test", "frechet", "density", "coverage", "diversity"):
        assert metrics[name] == pytest.approx(expected[name], rel=0.03, abs=0.02)  # TF32
    report = cg.evaluate(constant_generator(0).cuda(), gan_train_images=FEWER, progress=False)
    assert json.loads(json.dumps(report)) == report and report["gan_test"] < 0.3


@pytest.mark.slow
def test_evaluate_repeats_itself_and_changes_nothing(real_report):
    generator = RealImages().train()
    weights = {name: value.clone() for name, value in generator.state_dict().items()}
    before = torch.get_rng_state()
    assert evaluate(generator) == real_report
    assert torch.equal(torch.get_rng_state(), before)
    assert generator.training
    assert all(torch.equal(value, weights[name]) for name, value in generator.state_dict().items())


# --- images of one's own -------------------------------------------------------------------------


def own_data(counts=(300, 300, 300), shape=(1, 8, 8)):
    """Noisy images, each class brighter in its third of the columns, by a random amount."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.rand(len(labels), *shape, generator=rng(0)) * 128
    bright = torch.rand(len(labels), 1, 1, 1, generator=rng(1)) * 100 + 27
    column = torch.arange(shape[2]) * len(counts) // shape[2]
    images += bright * (column == labels[:, None, None, None])
    return cg.LabelledImages(images.byte(), labels, tuple("abcdefghij"[: len(counts)]))


class OwnImages(cg.Generator):
    """A generator that returns images of the data; z selects one of the class asked for."""

    def __init__(self, data, per_class=None, obeys=True):
        shape = tuple(data.images.shape[1:])
        super().__init__(cg.CGANConfig(classes=data.classes, image_shape=shape))
        images = cg.normalize(data.images)
        self.images = [images[data.labels == y][:per_class] for y in range(len(data.classes))]
        self.obeys = obeys

    def forward(self, z, labels):
        rows, shown = torch.special.ndtr(z[:, :2].double()).T
        shown = labels if self.obeys else (shown * len(self.images)).long()
        chosen = ((self.images[y], row) for y, row in zip(shown.tolist(), rows, strict=True))
        return torch.stack([images[int(row * len(images))] for images, row in chosen])


quick = functools.partial(cg.train_classifier, epochs=15)  # 45 steps: the classes differ clearly


def evaluate_own(data, train_classifier=quick, **kwargs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "train_classifier", train_classifier)
        return cg.evaluate(OwnImages(data, **kwargs), data=data, progress=False)


@pytest.fixture(scope="module")
def own_report():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the evaluation classifier")  # it is good enough
        return evaluate_own(own_data())


def test_a_report_of_own_images_has_the_form_of_fashion_mnists(own_report, report):
    def form(value):
        """Names and types, without class names."""
        if isinstance(value, list):
            return list
        return (
            {key: form(v) for key, v in value.items()} if isinstance(value, dict) else type(value)
        )

    def of_classes(value):
        return {key: tuple(v) for key, v in value.items() if key.endswith("_per_class")}

    assert json.loads(json.dumps(own_report)) == own_report
    for own, fashion in ((own_report, report), (own_report["real"], report["real"])):
        # the shipped generators were measured before evaluate had these
        later = {"precision", "recall", "frechet_within", "frechet_within_per_class"}
        assert own.keys() - fashion.keys() <= later and own.keys() >= fashion.keys()
        assert all(type(own[key]) is type(fashion[key]) for key in fashion)
        assert set(of_classes(own).values()) == {("a", "b", "c")}
        assert [sum(row) for row in own["confusion"]] == [60] * 3
    assert own_report["images"] == {"generated": 180, "real_test": 180, "gan_train": 720}


def test_own_real_images_reach_their_own_level(own_report):
    real = own_report["real"]
    assert real["gan_test"] > 0.95 and real["coverage"] > 0.8
    for metric in ("gan_test", "gan_train"):
        assert own_report[metric] == pytest.approx(real[metric], abs=0.05), metric
    for metric in ("coverage", "density", "diversity"):
        assert own_report[metric] == pytest.approx(real[metric], rel=0.3), metric
    assert own_report["frechet"] < 2 * real["frechet"]


def test_own_images_of_any_label_get_the_level_of_chance(own_report):
    report = evaluate_own(own_data(), obeys=False)
    assert report["real"] == own_report["real"]  # no matter which generator stands beside
    assert report["gan_test"] == pytest.approx(1 / 3, abs=0.1)
    assert report["gan_train"] < 0.6
    assert report["frechet"] < 2 * report["real"]["frechet"]
    assert report["coverage"] == pytest.approx(own_report["coverage"], abs=0.1)


def test_one_own_image_per_class_has_no_diversity():
    report = evaluate_own(own_data(), per_class=1)
    assert report["diversity"] == pytest.approx(0, abs=1e-3)
    assert report["coverage"] < 0.2
    assert report["frechet"] > 5 * report["real"]["frechet"]
    assert report["gan_test"] > 0.6


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 4, 4)])
def test_own_images_of_unequal_classes(shape):
    trained = []

    def train_classifier(images, labels, *args, **kwargs):
        trained.append((images, labels.bincount().tolist(), kwargs["balanced"]))
        return quick(images, labels, *args, **kwargs)

    data = own_data((400, 99, 50), shape)
    report = evaluate_own(data, train_classifier)
    (real, of_real, _), (generated, of_generated, _) = trained
    assert of_real == of_generated == [320, 80, 40] and not torch.equal(real, generated)
    assert all(balanced for _, _, balanced in trained)
    for metrics in (report, report["real"]):
        assert [sum(row) for row in metrics["confusion"]] == [80, 19, 10]
        assert min(metrics["gan_test_per_class"].values()) > 0.7
        assert metrics["gan_test"] == pytest.approx(
            sum(metrics["gan_test_per_class"].values()) / 3  # each class counts the same
        )


def test_held_out_images_are_a_fifth_of_each_class_and_train_nothing():
    data = own_data((400, 99, 50))
    before = torch.get_rng_state()
    train, test = evaluation._hold_out(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert test.labels.bincount().tolist() == [80, 19, 10]
    assert torch.equal(train.labels[: len(test)], test.labels)
    rows = torch.cat([train.images, test.images]).flatten(1).unique(dim=0)
    assert torch.equal(rows, data.images.flatten(1).unique(dim=0)) and len(rows) == len(data)
    again = evaluation._hold_out(data)
    assert torch.equal(again[1].images, test.images)
    first = data.images[data.labels == 0][:80]  # a folder's first images may be alike
    assert len(torch.cat([first, test.images]).flatten(1).unique(dim=0)) > 120


def test_a_classifier_that_can_only_guess_is_warned_of():
    data = own_data((100, 100, 100))
    mixed = torch.randperm(300, generator=rng(0))
    data = cg.LabelledImages(data.images, data.labels[mixed], data.classes)
    with pytest.warns(
        UserWarning, match="right for .*% of the held-out images, with 33% by chance"
    ):
        evaluate_own(data)


def test_compute_metrics_with_own_real_images():
    data = own_data((40, 40, 40))
    images = cg.normalize(data.images)
    classifier = quick(images, data.labels, classes=data.classes, progress=False)
    same = cg.compute_metrics(classifier, images, data.labels, data)
    assert same["frechet"] == pytest.approx(0, abs=1e-3)
    assert same["coverage_per_class"] == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ValueError, match=r"real must be given.* \(1, 8, 8\) images of a, b, c"):
        cg.compute_metrics(classifier, images, data.labels)
    with pytest.raises(ValueError, match=r"real must be .*; got .* images of a, b$"):
        cg.compute_metrics(classifier, images, data.labels, data.subset(["a", "b"]))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "data must be a LabelledImages", {"data": own_data().images}),
        (
            ValueError,
            "data must have 50 or more of each class; got 49 b, 0 c$",
            {"data": own_data((50, 49, 0))},
        ),
        (
            ValueError,
            r"data must be \(1, 8, 8\) images of a, b, c; got \(3, 8, 8\) images of a, b, c",
            {"data": own_data(shape=(3, 8, 8))},
        ),
        (ValueError, "of a, b, c; got .* of a, b$", {"data": own_data((50, 50))}),
        (ValueError, "gan_train_images must be None", {"gan_train_images": 10_000}),
        (
            ValueError,
            "got one, a",
            {"generator": OwnImages(own_data((50,))), "data": own_data((50,))},
        ),
    ],
)
def test_evaluate_names_what_is_wrong_with_the_data(error, message, arguments, monkeypatch):
    monkeypatch.setattr(evaluation, "sample", None)  # refused before any work
    data = own_data()
    with pytest.raises(error, match=message):
        cg.evaluate(**{"generator": OwnImages(data), "data": data} | arguments)


def test_a_class_of_equal_images_is_refused():
    data = own_data()
    data.images[data.labels == 1] = 7
    with pytest.raises(ValueError, match="different images of each class; those held out of b"):
        evaluate_own(data)


# --- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    """The report of a generator that ships with the package."""
    return cg.pretrained.load_record("original")["metrics"]


def test_format_report_names_every_metric_and_class_within_80_columns(real_report):
    table = cg.format_report(real_report)
    assert all(name in table for name in (*METRICS.values(), *cg.FASHION_MNIST_CLASSES))
    assert f"{real_report['frechet']:.3f}" in table
    assert f"({real_report['real']['gan_train_per_class']['Bag']:.2f})" in table
    assert max(map(len, table.split("\n"))) <= 80
    assert "FID" not in table


def test_format_report_leaves_out_what_was_not_measured(own_report):
    assert METRICS["frechet_within"] in cg.format_report(own_report)
    unmeasured = own_report | {"frechet_within": None}  # as with too few images
    assert METRICS["frechet_within"] not in cg.format_report(unmeasured)


def test_format_report_aligns_names_of_any_length(own_report):
    long = "Canis lupus familiaris, seen from behind at dusk"

    def renamed(value):
        if not isinstance(value, dict):
            return value
        return {{"a": long}.get(key, key): renamed(each) for key, each in value.items()}

    _, per_class, confusion = cg.format_report(renamed(own_report)).split("\n\n")
    assert "Canis lupus familiaris, seen " in per_class and long not in per_class
    for rows in (per_class.split("\n"), confusion.split("\n")[1:]):
        assert len({len(row) for row in rows}) == 1
    for name in "bc":
        assert f"\n{name} " in per_class and f"\n{name} " in confusion


def test_evaluate_command_prints_the_table_and_writes_json(report, tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / "run.pt"
    cg.save_checkpoint(checkpoint, cg.TrainingState.create(ORIGINAL))
    seeds = []

    def evaluate(generator, seed, data):
        assert isinstance(generator, cg.Generator | cg.TrainingState)
        seeds.append(seed)
        return report

    monkeypatch.setattr(command_line, "evaluate", evaluate)
    written = tmp_path / "new" / "out.json"
    arguments = ["evaluate", str(checkpoint), "--json", str(written), "--seed", "4"]
    monkeypatch.setattr(sys, "argv", ["cgan_utils", *arguments])
    command_line.main()
    assert seeds == [4]
    assert cg.format_report(report) in capsys.readouterr().out
    assert json.loads(written.read_text(encoding="utf-8")) == report


def test_quality_results_hold_the_bands_of_their_values():
    results = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))
    assert "original" in results
    for recipe, result in results.items():
        config = getattr(cg.CGANConfig, recipe)()
        assert result["config"] == config.to_dict(), "measure the recipe again: it has changed"
        summaries = [
            *result["metrics"].items(),
            *((k, each) for k, v in result["per_class"].items() for each in v.values()),
            *((k, each) for k, v in result["history"].items() for each in v),
        ]
        assert len(summaries) == 6 + 3 * 10 + 4 * config.epochs
        for name, summary in summaries:
            assert len(summary["per_seed"]) == len(result["seeds"]) >= 3
            low, high = summary["band"]
            width = max(summary["per_seed"]) - min(summary["per_seed"])
            assert low == pytest.approx(max(min(summary["per_seed"]) - width, 0), abs=1e-4)
            ends_at_1 = name.startswith(("gan_", "coverage", "d_"))
            end = 1 if ends_at_1 else math.inf
            assert high == pytest.approx(min(max(summary["per_seed"]) + width, end), abs=1e-4)
            assert low <= summary["mean"] <= high


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "generator must be", {"generator": torch.nn.Linear(1, 1)}),
        (
            ValueError,
            "1, 8, 8",
            {"generator": cg.Generator(ORIGINAL.replace(image_shape=(1, 8, 8)))},
        ),
        (
            ValueError,
            "got .* of a, b",
            {"generator": cg.Generator(ORIGINAL.replace(classes=("a", "b")))},
        ),
        (TypeError, "seed must be", {"seed": 1.5}),
        (ValueError, "seed must be", {"seed": -1}),
        (ValueError, "seed must be", {"seed": 2**32}),  # sample_latent's largest is one less
        (ValueError, "gan_train_images must be at least", {"gan_train_images": METRIC_IMAGES - 1}),
        (ValueError, "gan_train_images must be at most", {"gan_train_images": 60_001}),
    ],
)
def test_evaluate_names_the_argument_it_cannot_use(error, message, arguments, monkeypatch):
    monkeypatch.setattr(evaluation, "load_classifier", None)  # refused before any work
    with pytest.raises(error, match=message):
        cg.evaluate(**{"generator": cg.Generator(ORIGINAL)} | arguments)


@pytest.mark.parametrize(
    "metric", [cg.frechet_distance, cg.precision_and_recall, cg.density_and_coverage]
)
@pytest.mark.parametrize(
    ("error", "message", "real", "generated"),
    [
        (TypeError, "real must be .* got a torch.int64", torch.ones(9, 2).long(), torch.ones(9, 2)),
        (TypeError, "generated must be a float tensor .* got a NoneType", torch.ones(9, 2), None),
        (
            ValueError,
            r"generated must have .*\(N, 2\).* got \(9, 3\)",
            torch.ones(9, 2),
            torch.ones(9, 3),
        ),
        (ValueError, r"real must have .*\(N, F\).* got \(9,\)", torch.ones(9), torch.ones(9)),
        (ValueError, "generated must be finite", torch.ones(9, 2), torch.full((9, 2), torch.nan)),
        (ValueError, "real must have at least", torch.ones(1, 2), torch.ones(9, 2)),
    ],
)
def test_features_that_do_not_fit_are_named(metric, error, message, real, generated):
    with pytest.raises(error, match=message):
        metric(real, generated)


def test_images_that_are_not_finite_are_not_measured(monkeypatch):
    monkeypatch.setattr(evaluation, "load_classifier", lambda *_: Classifier().eval())
    with pytest.raises(ValueError, match="generator makes images with NaN"):
        evaluate(constant_generator(math.nan))


def test_evaluate_measures_the_ema_of_a_training_state_if_there_is_one(monkeypatch):
    class Reached(Exception):
        pass

    def sample(generator, *_):
        raise Reached(generator)

    monkeypatch.setattr(evaluation, "load_classifier", lambda *_: Classifier().eval())
    monkeypatch.setattr(evaluation, "sample", sample)
    for config in (ORIGINAL, cg.CGANConfig.tuned()):
        state = cg.TrainingState.create(config)
        with pytest.raises(Reached) as reached:
            cg.evaluate(state)
        measured = state.generator if state.generator_ema is None else state.generator_ema
        assert reached.value.args[0] is measured

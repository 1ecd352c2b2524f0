"""The evaluation classifier: how it is trained, checked and kept."""

import importlib.util
import inspect
import sys

import pytest
import torch

import cgan_utils as cg
from cgan_utils import classifier as module
from cgan_utils.classifier import MIN_ACCURACY, Classifier, extract_features, real_images
from cgan_utils.evaluation import gan_test

pytestmark = pytest.mark.slow  # trains classifiers

CPU = torch.device("cpu")


@pytest.mark.slow
def test_classifier_is_accurate_and_kept(monkeypatch):
    classifier = cg.load_classifier("cpu", progress=False)
    images, labels = real_images("test", CPU)
    assert gan_test(classifier, images, labels)["gan_test"] >= MIN_ACCURACY
    monkeypatch.setattr(module, "train_classifier", None)  # another training would fail
    again = cg.load_classifier("cpu")
    with torch.no_grad():
        assert torch.equal(again(images[:100]), classifier(images[:100]))


def test_a_poor_classifier_is_refused_and_a_damaged_one_trained_again(tmp_path, monkeypatch):
    trained = []

    def train_one(images, labels, progress):
        trained.append(len(images))
        return Classifier().eval()

    monkeypatch.setenv("CGAN_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(module, "train_classifier", train_one)
    for attempt in (1, 2):
        with pytest.raises(RuntimeError, match=r"accuracy on real test images is 0\.\d+, below"):
            cg.load_classifier("cpu")
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:1000])
        assert trained == [60_000] * attempt


@pytest.mark.parametrize(
    "changed",
    [
        "Classifier",
        "train_classifier",
        "_untrained",
        "real_images",
        "normalize",
        "make_rng",
        "seeded",
    ],
)
def test_a_kept_file_is_named_after_the_code_that_decides_its_weights(changed, monkeypatch):
    source_of = inspect.getsource
    monkeypatch.setattr(
        inspect, "getsource", lambda part: source_of(part) + "#" * (part.__name__ == changed)
    )
    spec = importlib.util.spec_from_file_location("cgan_utils.edited", module.__file__)
    edited = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, edited)  # inspect finds the class through it
    spec.loader.exec_module(edited)
    assert module._kept_at(1, CPU).name != edited._kept_at(1, CPU).name


def test_a_kept_file_is_named_after_the_number_of_images_and_the_device():
    kept = {module._kept_at(n, torch.device(d)) for n in (1, 2) for d in ("cpu", "cuda")}
    assert len(kept) == 4


def test_train_classifier_repeats_itself_and_leaves_random_numbers_alone():
    images, labels = (part[:512] for part in real_images("test", CPU))
    before = torch.get_rng_state()
    first, second, other = (
        cg.train_classifier(images, labels, seed, epochs=1, progress=False) for seed in (3, 3, 4)
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        third = cg.train_classifier(images, labels, 3, epochs=1, progress=False)
    assert torch.equal(first.head.weight, third.head.weight)  # whatever modes the caller is in
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_arguments_the_classifier_is_fashion_mnists():
    classifier = Classifier()
    shapes = [tuple(p.shape) for p in classifier.parameters() if p.dim() > 1]
    assert shapes == [(32, 1, 5, 5), (64, 32, 3, 3), (128, 3136), (10, 128)]
    assert classifier.classes == cg.FASHION_MNIST_CLASSES


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 13), (1, 4, 4)])
def test_a_classifier_learns_images_of_any_shape(shape):
    labels = torch.arange(65) % 2  # the second batch would be a single image
    images = (torch.randn(65, *shape) * 0.1 + (labels - 0.5)[:, None, None, None]).clamp(-1, 1)
    classifier = cg.train_classifier(
        images, labels, classes=("dark", "bright"), batch_size=64, epochs=20, progress=False
    )
    features, predicted = extract_features(classifier, images)
    assert features.shape == (65, 128)
    assert torch.equal(predicted, labels)
    assert classifier.features[1].num_batches_tracked == 20


@pytest.mark.parametrize(("batch_size", "steps"), [(256, 200), (30, 200), (2, 250)])
def test_few_images_are_trained_on_for_200_steps_or_5_epochs(batch_size, steps):
    images, labels = torch.rand(100, 1, 4, 4) * 2 - 1, torch.arange(100) % 10
    classifier = cg.train_classifier(images, labels, batch_size=batch_size, progress=False)
    assert classifier.features[1].num_batches_tracked == steps


@pytest.mark.parametrize(("balanced", "shares"), [(False, [0.8, 0.2]), (True, [0.5, 0.5])])
def test_balanced_classes_count_the_same(balanced, shares):
    """Two images that say nothing of their class: the best guess is the share of each class."""
    images = torch.rand(2, 1, 4, 4).mul(2).sub(1).repeat(50, 1, 1, 1)
    labels = (torch.arange(100) % 5 == 0).long()
    classifier = cg.train_classifier(
        images, labels, classes=("common", "rare"), balanced=balanced, progress=False
    )
    with torch.no_grad():
        found = classifier(images[:2]).softmax(dim=1)
    torch.testing.assert_close(found, torch.tensor([shares, shares]), atol=0.02, rtol=0)

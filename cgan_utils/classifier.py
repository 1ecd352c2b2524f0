"""The evaluation classifier: a small CNN, trained once on the real training images and kept."""

import hashlib
import inspect
import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ._checks import check_count, check_number, check_range, check_tensor
from ._runtime import (
    choose_device,
    default_modes,
    make_rng,
    runs_folder,
    seeded,
    write_atomically,
)
from .config import FASHION_MNIST_CLASSES
from .data import load_fashion_mnist, normalize

MIN_ACCURACY = 0.91  # on the real test images; below it the metrics would mean little

WEIGHTS, ORDER = range(2)  # the purposes of a classifier's random numbers: see `make_rng`


class Classifier(nn.Module):
    """Classify images: float32 (N, 1, 28, 28) in [-1, 1] -> logits (N, 10)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=5, stride=2, padding=2, bias=False),  # -> 14 x 14
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1, bias=False),  # -> 7 x 7
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, len(FASHION_MNIST_CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@default_modes()
def train_classifier(
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    *,
    epochs: int = 5,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    progress: bool = True,
) -> Classifier:
    """Train a `Classifier` on images float32 (N, 1, 28, 28) in [-1, 1] and labels int64 (N,).

    The optimiser is Adam, with a learning rate that rises and then falls to 0 (Smith & Topin 2017,
    arXiv 1708.07120). Returns the classifier in eval mode. Raises TypeError or ValueError, naming
    the argument, for values it cannot be trained with.
    """
    check_images(images, labels)
    check_count("seed", seed, minimum=0)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_number("learning_rate", learning_rate)
    if learning_rate == 0:
        raise ValueError("learning_rate must be positive; got 0")
    classifier = _untrained(seed, images.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate, fused=True)
    steps = epochs * math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = make_rng(seed, ORDER)
    bar = tqdm(total=steps, desc="classifier", disable=not progress, file=sys.stdout, leave=False)
    with bar:
        for _ in range(epochs):
            shuffled = torch.randperm(len(images), generator=order).to(images.device)
            for batch in shuffled.split(batch_size):
                loss = F.cross_entropy(classifier(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return classifier.eval()


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise TypeError or ValueError unless a `Classifier` can be trained on these or asked."""
    check_tensor("images", images, torch.float32, "N", 1, 28, 28)
    check_tensor("labels", labels, torch.int64, len(images))
    low, high = images.aminmax()
    if not -1 <= low <= high <= 1:  # also raises for NaN
        raise ValueError(f"images must lie in [-1, 1]; got {low:g} to {high:g}")
    if low == 0 < high:  # exactly 0: the background of real images that were not normalised
        raise ValueError(f"images must lie in [-1, 1], not [0, {high:g}]: use `normalize`")
    check_range("labels", labels, len(FASHION_MNIST_CLASSES))


def _untrained(seed, device):
    with seeded(seed, WEIGHTS):
        classifier = Classifier()
    return classifier.to(device, memory_format=torch.channels_last)  # faster convolutions on a CPU


def load_classifier(device: str | torch.device = "auto", progress: bool = True) -> Classifier:
    """Return the evaluation classifier in eval mode; the first call trains it.

    Raises RuntimeError unless its accuracy on the real test set is at least `MIN_ACCURACY`.
    """
    device = choose_device(device)
    classifier = real_classifier(60_000, device, progress)
    images, labels = real_images("test", device)
    _, predicted = extract_features(classifier, images)
    accuracy = (predicted == labels).double().mean().item()
    if accuracy < MIN_ACCURACY:
        raise RuntimeError(
            f"the evaluation classifier's accuracy on real test images is {accuracy:.3f}, below "
            f"{MIN_ACCURACY}: remove the classifier-*.pt files in {runs_folder()} and try again"
        )
    return classifier


def real_classifier(count: int, device: torch.device, progress: bool) -> Classifier:
    """Return a classifier trained on `count` real training images, kept in the runs folder."""
    path = _kept_at(count, device)
    try:
        classifier = _untrained(0, device)
        classifier.load_state_dict(torch.load(path, device, weights_only=True))
        return classifier.eval()
    except Exception:  # the file is missing or damaged: train again rather than stop
        images, labels = (part[:count] for part in real_images("train", device))
        classifier = train_classifier(images, labels, progress=progress)
        write_atomically(path, lambda file: torch.save(classifier.state_dict(), file))
        return classifier


def real_images(split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images float32 (N, 1, 28, 28) in [-1, 1] and labels int64 (N,).

    They are ordered 0, 1, ... 9, 0, 1, ...: FashionMNIST's classes are of one size, and in this
    order the first images have each class equally often.
    """
    data = load_fashion_mnist(split)
    by_class = [(data.labels == y).nonzero().flatten() for y in range(len(data.classes))]
    data = data[torch.stack(by_class, dim=1).flatten()]
    return normalize(data.images.to(device)), data.labels.to(device)


# The source of everything that decides a kept classifier's weights, read before it can be edited.
CODE = "".join(
    inspect.getsource(part)
    for part in (
        Classifier, train_classifier, _untrained, real_images, normalize, make_rng, seeded,
    )
)  # fmt: skip


def _kept_at(count, device):
    """Return the file of a classifier of real images, named after what decides its weights.

    That is the code, the number of images, PyTorch's version and the type of the device. It is not
    the machine: its processor and its number of threads change the last digits only.
    """
    recipe = f"{CODE} {count} images, torch {torch.__version__}, {device.type}"
    return runs_folder() / f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"


@torch.no_grad()
def extract_features(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a classifier's features, float32 (N, 128), and the classes it predicts, int64 (N,)."""
    features = torch.cat([classifier.features(batch) for batch in images.split(1000)])
    return features, classifier.head(features).argmax(dim=1)

"""The evaluation classifier: a small CNN; FashionMNIST's is trained once and kept."""

import hashlib
import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_count, check_number, check_range, check_tensor, check_tuple
from ._runtime import (
    choose_device,
    default_modes,
    make_rng,
    progress_bar,
    runs_folder,
    seeded,
    write_atomically,
)
from .config import FASHION_MNIST_CLASSES
from .data import load_fashion_mnist, normalize

MIN_ACCURACY = 0.91  # on the real test images; below it the metrics would mean little

WEIGHTS, ORDER = range(2)  # the purposes of a classifier's random numbers: see `make_rng`


class Classifier(nn.Module):
    """Classify images: float32 (N, *image_shape) in [-1, 1] -> logits (N, len(classes))."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: tuple[str, ...] = FASHION_MNIST_CLASSES,
    ):
        super().__init__()
        self.image_shape, self.classes = image_shape, classes
        channels, height, width = image_shape
        places = math.ceil(height / 4) * math.ceil(width / 4)  # left after two strides of 2
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=5, stride=2, padding=2, bias=False),  # -> H/2 x W/2
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1, bias=False),  # -> H/4 x W/4
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * places, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@default_modes()
def train_classifier(
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    *,
    classes: tuple[str, ...] = FASHION_MNIST_CLASSES,
    balanced: bool = False,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    progress: bool = True,
) -> Classifier:
    """Train a `Classifier` on images float32 (N, C, H, W) in [-1, 1] and labels int64 (N,).

    classes: the name of each label.
    balanced: give each class the same weight in the loss, however many images it has.
    epochs: None is 5, or more for few images: as many as make 200 steps.

    The optimiser is Adam, with a learning rate that rises and then falls to 0 (Smith & Topin 2017,
    arXiv 1708.07120). Returns the classifier in eval mode. Raises TypeError or ValueError, naming
    the argument, for values it cannot be trained with.
    """
    check_tuple("classes", classes, str)
    check_images(images, labels, ("C", "H", "W"), classes)
    check_count("seed", seed, minimum=0)
    check_count("batch_size", batch_size, minimum=2)  # batch norm compares the images of a batch
    check_number("learning_rate", learning_rate)
    if learning_rate == 0:
        raise ValueError("learning_rate must be positive; got 0")
    used = len(images) - (len(images) % batch_size == 1)  # in an epoch: no batch of one image
    if used == 0:
        raise ValueError("images must be two or more; got one")
    batches = math.ceil(used / batch_size)
    epochs = max(5, math.ceil(200 / batches)) if epochs is None else epochs
    check_count("epochs", epochs)
    classifier = _untrained(seed, images.device, tuple(images.shape[1:]), classes)
    weight = 1 / labels.bincount(minlength=len(classes)).clamp(min=1) if balanced else None
    optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate, fused=True)
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = make_rng(seed, ORDER)
    with progress_bar(progress=progress, total=steps, desc="classifier") as bar:
        for _ in range(epochs):
            shuffled = torch.randperm(len(images), generator=order)[:used].to(images.device)
            for batch in shuffled.split(batch_size):
                loss = F.cross_entropy(classifier(images[batch]), labels[batch], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return classifier.eval()


def check_images(images: Tensor, labels: Tensor, image_shape: tuple, classes: tuple) -> None:
    """Raise TypeError or ValueError unless a `Classifier` can be trained on these or asked."""
    check_tensor("images", images, torch.float32, "N", *image_shape)
    check_tensor("labels", labels, torch.int64, len(images))
    low, high = images.aminmax()
    if not -1 <= low <= high <= 1:  # also raises for NaN
        raise ValueError(f"images must lie in [-1, 1]; got {low:g} to {high:g}")
    if low == 0 < high:  # exactly 0: the background of real images that were not normalised
        raise ValueError(f"images must lie in [-1, 1], not [0, {high:g}]: use `normalize`")
    check_range("labels", labels, len(classes))


def _untrained(seed, device, *form):
    """Return a `Classifier(*form)` with initial parameters."""
    with seeded(seed, WEIGHTS):
        classifier = Classifier(*form)
    return classifier.to(device, memory_format=torch.channels_last)  # faster convolutions on a CPU


def load_classifier(device: str | torch.device = "auto", progress: bool = True) -> Classifier:
    """Return FashionMNIST's evaluation classifier in eval mode; the first call trains it.

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

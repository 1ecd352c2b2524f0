"""The judge: a small classifier, trained on the real training images and kept for later runs."""

import hashlib
import inspect
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .config import (
    FASHION_MNIST_CLASSES,
    check_count,
    check_number,
    check_range,
    check_tensor,
    choose_device,
    random_stream,
    runs_folder,
    seeded,
    write_atomically,
)
from .data import load_fashion_mnist, normalize

JUDGE_ACCURACY = 0.91  # on the real test images; a judge below it would not be believed

WEIGHTS, ORDER = range(2)  # what a classifier draws random numbers for: see `random_stream`


class Classifier(nn.Module):
    """A small CNN: images float32 (N, 1, 28, 28) in [-1, 1] -> logits (N, 10)."""

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

    def forward(self, images):
        return self.head(self.features(images))


def train_classifier(
    images, labels, seed=0, *, epochs=5, batch_size=256, learning_rate=5e-3, progress=True
):
    """A `Classifier` trained on images float32 (N, 1, 28, 28) in [-1, 1] and labels int64 (N,).

    Adam with a learning rate that rises, then falls to 0 (Smith & Topin 2017, arXiv 1708.07120).
    Raises TypeError or ValueError, naming the argument, for what it cannot train with.
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
    order = random_stream(seed, ORDER)
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


def check_images(images, labels):
    """Raise unless they are what a `Classifier` can be trained on, or be asked about."""
    check_tensor("images", images, torch.float32, "N", 1, 28, 28)
    check_tensor("labels", labels, torch.int64, len(images))
    low, high = images.aminmax()
    if not -1 <= low <= high <= 1:  # NaN too
        raise ValueError(f"images must lie in [-1, 1]; got {low:g} to {high:g}")
    if low == 0 < high:  # exactly: real images whose ground, which is -1, was not taken there
        raise ValueError(f"images must lie in [-1, 1], not [0, {high:g}]: `normalize` sees to it")
    check_range("labels", labels, len(FASHION_MNIST_CLASSES))


def _untrained(seed, device):
    with seeded(seed, WEIGHTS):
        classifier = Classifier()
    return classifier.to(device, memory_format=torch.channels_last)  # faster convolutions on a CPU


def load_judge(device="auto", progress=True):
    """The classifier that judges, in eval mode: trained on the real training set, once.

    Raises RuntimeError unless its accuracy on the real test set is at least `JUDGE_ACCURACY`.
    """
    device = choose_device(device)
    judge = real_classifier(60_000, device, progress)
    images, labels = real_images("test", device)
    _, seen = look(judge, images)
    accuracy = (seen == labels).double().mean().item()
    if accuracy < JUDGE_ACCURACY:
        raise RuntimeError(
            f"the judge's accuracy on real test images is {accuracy:.3f}, below {JUDGE_ACCURACY}: "
            f"remove the classifier-*.pt files in {runs_folder()} and try again"
        )
    return judge


def real_classifier(count, device, progress):
    """A classifier trained on `count` real training images, kept in the runs folder."""
    path = _kept_at(count, device)
    try:
        classifier = _untrained(0, device)
        classifier.load_state_dict(torch.load(path, device, weights_only=True))
        return classifier.eval()
    except Exception:  # not there, or damaged: no reason to stop, it can be made again
        images, labels = (part[:count] for part in real_images("train", device))
        classifier = train_classifier(images, labels, progress=progress)
        write_atomically(path, lambda file: torch.save(classifier.state_dict(), file))
        return classifier


def real_images(split, device):
    """Images float (N, 1, 28, 28), labels int64 (N,), ordered 0, 1, ... 9, 0, 1, ...

    The classes are of one size; in this order the first images have each class equally often.
    """
    data = load_fashion_mnist(split)
    by_class = [(data.labels == y).nonzero().flatten() for y in range(len(data.classes))]
    data = data[torch.stack(by_class, dim=1).flatten()]
    return normalize(data.images.to(device)), data.labels.to(device)


_DECIDING = Classifier, train_classifier, _untrained, real_images, normalize, random_stream, seeded
CODE = "".join(inspect.getsource(part) for part in _DECIDING)  # now, before an edit


def _kept_at(count, device):
    """The file of a classifier of real images, named after what decides its weights.

    That is the source of the parts above, the number of images, PyTorch's version and the type of
    the device. Not the machine: its processor and number of threads move their last digits only.
    """
    recipe = f"{CODE} {count} images, torch {torch.__version__}, {device.type}"
    return runs_folder() / f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"


@torch.no_grad()
def look(classifier, images):
    """A classifier's features, float (N, 128), and the classes it sees, int64 (N,)."""
    features = torch.cat([classifier.features(batch) for batch in images.split(1000)])
    return features, classifier.head(features).argmax(dim=1)

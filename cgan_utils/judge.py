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
    check_type,
    choose_device,
    random_stream,
    runs_folder,
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
    """A `Classifier` trained on images float (N, 1, 28, 28) in [-1, 1] and labels int64 (N,).

    Adam with a learning rate that rises, then falls to 0 (Smith & Topin 2017, arXiv 1708.07120).
    """
    check_images(images, labels)
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
    check_type("images", images, torch.Tensor)
    check_type("labels", labels, torch.Tensor)
    if not images.is_floating_point() or images.shape[1:] != (1, 28, 28) or len(images) == 0:
        raise ValueError(
            f"images must be float (N, 1, 28, 28); got {images.dtype} {tuple(images.shape)}"
        )
    low, high = images.aminmax()
    if not -1 <= low <= high <= 1:  # NaN too
        raise ValueError(f"images must lie in [-1, 1]; got {low:g} to {high:g}")
    if low >= 0:  # clothes lie on a dark ground, which is -1
        raise ValueError("images must lie in [-1, 1]; got none below 0: `normalize` makes them so")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be int64, one per image; got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= len(FASHION_MNIST_CLASSES):
        raise ValueError(f"labels must lie in 0..9; got {labels.min()}..{labels.max()}")


CODE = inspect.getsource(Classifier) + inspect.getsource(train_classifier)  # now, before an edit


def _untrained(seed, device):
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
        torch.set_rng_state(random_stream(seed, WEIGHTS).get_state())
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
    """A classifier trained on `count` real training images, kept in the runs folder.

    Its file is named after everything that decides the weights: the code, torch and the device.
    """
    recipe = f"{CODE} {count} images, torch {torch.__version__}, {device.type}"
    path = runs_folder() / f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"
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


@torch.no_grad()
def look(classifier, images):
    """A classifier's features, float (N, 128), and the classes it sees, int64 (N,)."""
    features = torch.cat([classifier.features(batch) for batch in images.split(1000)])
    return features, classifier.head(features).argmax(dim=1)

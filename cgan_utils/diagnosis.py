"""Signs of a training that goes wrong, for images of any kind and without a classifier."""

import math
import warnings

import torch
from torch import Tensor

from .data import LabelledImages, normalize
from .models import Generator
from .sampling import sample
from .state import TrainingState

DEAD = 0.1  # of the real images' spread: below it a class hardly depends on z
REJECTED = 0.05  # mean D(G(z)): below it G learns next to nothing from D
# Steps, or half of a shorter run: on FashionMNIST the original recipe recovers after 1,900.
LONG = 3000


def class_spread(
    generator: Generator | TrainingState, data: LabelledImages, seed: int = 0, count: int = 200
) -> dict[str, float]:
    """Compare how much each class's images vary with z: 1 as real ones do, 0 if they are all alike.

    The spread of a set of images is the root of their pixels' mean variance; the result maps each
    class to the spread of `count` generated images, divided by that of the real ones in `data`.
    A class whose real images are all alike has spread 1 if the generated ones are, else infinity.
    """
    spreads = {}
    for label, name in enumerate(data.classes):
        real = _spread(normalize(data.images[data.labels == label]))
        generated = _spread(sample(generator, [label] * count, seed))
        spreads[name] = generated / real if real > 0 else 1.0 if generated == 0 else float("inf")
    return spreads


def nearest_centroid_accuracy(
    images: Tensor, labels: Tensor, data: LabelledImages
) -> dict[str, float]:
    """Return each class's share of images that are nearest to the mean real image of their class.

    images float (N, C, H, W) in [-1, 1]; labels int64 (N,); data: the real images. Distances are
    Euclidean, between pixels. It needs no training, and means little for classes whose real images
    are not nearest to their own mean either.
    """
    real = normalize(data.images).flatten(1)
    means = torch.stack([real[data.labels == y].mean(dim=0) for y in range(len(data.classes))])
    nearest = torch.cdist(images.flatten(1), means).argmin(dim=1)
    return {
        name: (nearest[labels == label] == label).double().mean().item()
        for label, name in enumerate(data.classes)
    }


def warn_of_trouble(state: TrainingState, data: LabelledImages, epoch_steps: int) -> None:
    """Warn of classes that hardly depend on z, and of a D that has rejected everything for long."""
    dead = [name for name, spread in class_spread(state, data).items() if spread < DEAD]
    if dead:
        warnings.warn(
            f"the images of {', '.join(dead)} hardly vary with z (`cg.class_spread`); train with "
            "CGANConfig.tuned().for_data(data), another seed, or more images of these classes",
            stacklevel=4,
        )
    epochs = math.ceil(min(LONG, state.step / 2) / epoch_steps)
    last = state.history["d_fake"][-epochs:]
    if len(last) == epochs and max(last) < REJECTED:
        warnings.warn(
            f"D(G(z)) has been below {REJECTED} for {epochs * epoch_steps} steps: D rejects what G "
            "generates, and G learns little; more images or a smaller learning_rate may help",
            stacklevel=4,
        )


def _spread(images):
    return images.var(dim=0, correction=0).mean().sqrt().item()

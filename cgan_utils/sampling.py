"""Asking a trained generator for images: by class, by seed, or by latent."""

import copy
from collections.abc import Iterable
from numbers import Integral

import torch

from .config import check_count, check_tensor, check_type
from .models import Generator

MAX_SEED = 2**32 - 1  # torch's generator on the CPU keeps 32 bits: a larger seed repeats another's


def draw_latent(count, latent_dim, seed=0):
    """`count` noise vectors z ~ N(0, I): float32 (count, latent_dim), on the CPU.

    The same seed, from 0 to 2**32 - 1, gives the same vectors on every device; others raise.
    """
    check_count("count", count, minimum=0)
    check_count("latent_dim", latent_dim)
    check_count("seed", seed, minimum=0, maximum=MAX_SEED)
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(generator, labels, seed=0, *, latent=None, batch_size=1024):
    """Generate one image per label: float32 (N, C, H, W) in [-1, 1], on the generator's device.

    labels: one label or a sequence (list, numpy array, int64 tensor) of class numbers or names.
    latent: z float (N, latent_dim) to use as it is, turned to the generator's dtype. Otherwise z
        is drawn with `seed` and multiplied by the config's latent_scale, which below 1 trades
        variety for likeness (a form of the truncation trick, Brock et al. 2019, arXiv 1809.11096,
        section 3.1), and above 1 the other way round.
    batch_size: images made at a time; bounds the memory and does not change the images.

    The generator and the global random numbers stay as they were: a copy in eval mode draws.
    Raises TypeError or ValueError naming the argument for labels or a latent that do not fit, or a
    seed that is not in 0..2**32 - 1.
    """
    check_type("generator", generator, Generator)
    config = generator.config
    labels = label_numbers(labels, config.classes)
    if latent is None:
        latent = _scaled_latent(config, len(labels), seed)
    check_tensor("latent", latent, "float", len(labels), config.latent_dim)  # a row per label
    latent = latent.to(generator.embedding.weight)
    if len(latent) > 0 and not all(end.isfinite() for end in latent.aminmax()):
        raise ValueError("latent must be finite; got NaN or infinity")
    check_count("batch_size", batch_size)

    network = copy.deepcopy(generator).eval()
    images = torch.empty(len(labels), *config.image_shape, device=latent.device)
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        images[rows] = network(latent[rows], labels[rows].to(latent.device))
    return images


def class_grid(generator, columns=10, seed=0):
    """The identity figure's images: row y, column j holds G(z_j, y), the same z_j in every row.

    Returns float32 (num_classes * columns, C, H, W) in [-1, 1], row by row.
    """
    check_type("generator", generator, Generator)
    check_count("columns", columns)
    config = generator.config
    latent = _scaled_latent(config, columns, seed)
    labels = torch.arange(config.num_classes).repeat_interleave(columns)
    return sample(generator, labels, latent=latent.repeat(config.num_classes, 1))


def _scaled_latent(config, count, seed):
    return config.latent_scale * draw_latent(count, config.latent_dim, seed)


def label_numbers(labels, classes):
    """Class numbers, int64 (N,) on the CPU, for labels given as numbers or names, one or many."""
    if isinstance(labels, str | Integral):
        labels = [labels]
    if getattr(labels, "ndim", 1) != 1:  # of a tensor or an array
        raise ValueError(f"labels must have one dimension; got shape {tuple(labels.shape)}")
    if isinstance(labels, torch.Tensor):
        if labels.dtype == torch.int64 and len(labels) > 0:  # at once; many would take long
            for end in labels.aminmax():
                _class_number(end.item(), classes)
            return labels.cpu()
        labels = labels.tolist()
    if not isinstance(labels, Iterable):
        raise TypeError(f"labels must be whole numbers or class names; got {labels!r}")
    return torch.tensor([_class_number(label, classes) for label in labels], dtype=torch.long)


def _class_number(label, classes):
    if isinstance(label, str):
        if label not in classes:
            raise ValueError(f"labels: there is no class {label!r}; there are {', '.join(classes)}")
        return classes.index(label)
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(f"labels must be whole numbers or class names; got {label!r}")
    if not 0 <= label < len(classes):
        raise ValueError(f"labels must lie in 0..{len(classes) - 1}; got {label}")
    return int(label)

"""Asking a trained generator for images: by class, by seed, or by latent vector."""

import copy

import torch
from torch import Tensor, nn

from ._checks import check_count, check_number, check_tensor, label_numbers
from .models import Generator
from .state import TrainingState

MAX_SEED = 2**32 - 1  # torch's generator on the CPU keeps 32 bits: a larger seed repeats another's


def sample_latent(count: int, latent_dim: int, seed: int = 0) -> Tensor:
    """Sample `count` noise vectors z ~ N(0, I): float32 (count, latent_dim), on the CPU.

    The same seed, from 0 to 2**32 - 1, gives the same vectors on every device; others raise.
    """
    check_count("count", count, minimum=0)
    check_count("latent_dim", latent_dim)
    check_count("seed", seed, minimum=0, maximum=MAX_SEED)
    rng = torch.Generator().manual_seed(int(seed))
    return torch.randn(count, latent_dim, generator=rng, dtype=torch.float32)


@torch.no_grad()
def sample(
    generator: Generator | TrainingState,
    labels,
    seed: int = 0,
    *,
    latent: Tensor | None = None,
    latent_scale: float | None = None,
    batch_size: int = 1024,
) -> Tensor:
    """Generate one image per label: float32 (N, C, H, W) in [-1, 1], on the generator's device.

    generator: a Generator, or a TrainingState, whose moving average is used if it has one.
    labels: one label or a sequence (list, numpy array, int64 tensor) of class numbers or names.
    latent: z float (N, latent_dim) to use unchanged, converted to the generator's dtype; otherwise
        z is sampled with `seed`.
    latent_scale: standard deviation of the sampled z; None is the generator's own, normally 1.
        Below 1 it trades variety for typical images, like the truncation trick (Brock et al. 2019,
        arXiv 1809.11096, section 3.1); above 1 the other way round.
    batch_size: images generated at a time; bounds the memory and does not change the images.

    The generator and the global random numbers stay as they were: a copy in eval mode is used.
    Raises TypeError or ValueError naming the argument for labels or a latent that do not fit, or a
    seed that is not in 0..2**32 - 1.
    """
    generator = generator_of(generator)
    config = generator.config
    labels = label_numbers(labels, config.classes)
    if latent is None:
        latent = _scaled_latent(generator, len(labels), seed, latent_scale)
    check_tensor("latent", latent, "float", len(labels), config.latent_dim)  # a row per label
    latent = latent.to(generator.embedding.weight)
    if len(latent) > 0 and not all(end.isfinite() for end in latent.aminmax()):
        raise ValueError("latent must be finite; got NaN or infinity")
    check_count("batch_size", batch_size)

    network = copy.deepcopy(generator).eval()
    shape, device = (len(labels), *config.image_shape), latent.device
    labels = labels.to(device)
    images = torch.empty(shape, device=device, dtype=torch.float32)
    with torch.autocast(device.type, enabled=False):  # the caller's would change the images
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            images[rows] = network(latent[rows], labels[rows])
    return images


def class_grid(
    generator: Generator | TrainingState,
    columns: int = 10,
    seed: int = 0,
    latent_scale: float | None = None,
) -> Tensor:
    """Generate a class grid: row y, column j holds G(z_j, y), the same z_j in every row.

    Returns float32 (num_classes * columns, C, H, W) in [-1, 1], row by row. generator and
    latent_scale: see `sample`.
    """
    generator = generator_of(generator)
    check_count("columns", columns)
    num_classes = generator.config.num_classes
    latent = _scaled_latent(generator, columns, seed, latent_scale)
    labels = torch.arange(num_classes).repeat_interleave(columns)
    return sample(generator, labels, latent=latent.repeat(num_classes, 1))


def generator_of(generator: Generator | TrainingState) -> nn.Module:
    """Return the network to sample from; raise TypeError for anything that has none."""
    if isinstance(generator, TrainingState):
        return generator.generator if generator.generator_ema is None else generator.generator_ema
    if not isinstance(generator, Generator):
        raise TypeError(
            f"generator must be a Generator or TrainingState; got a {type(generator).__name__}"
        )
    return generator


def _scaled_latent(generator, count, seed, scale):
    if scale is None:
        scale = getattr(generator, "latent_scale", 1.0)
    check_number("latent_scale", scale)
    return scale * sample_latent(count, generator.config.latent_dim, seed)

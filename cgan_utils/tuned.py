"""The tuned recipe: all that notebook 06 adds to the plain conditional GAN.

Each addition is a field of `TunedConfig`, off by default. With all of them off the networks and the
step compute, bit for bit, what `models` and `training` compute. Nothing of the plain GAN imports
this module; it registers its networks and its step with `create_networks` and `recipe_of`.
"""

import copy
import dataclasses
import itertools
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import training
from ._checks import check_count
from .config import CGANConfig
from .data import LabelledImages
from .models import Generator, create_networks
from .state import TrainingState
from .training import discriminator_loss, generator_step, recipe_of

R1_INTERVAL = 8  # steps
UNEQUAL = 4  # times as many images in the largest class: then `for_data` balances the classes


# -- the configuration


@dataclasses.dataclass(frozen=True)
class TunedConfig(CGANConfig):
    """Hyper-parameters of the original recipe, and a switch for each addition of notebook 06.

    Raises TypeError or ValueError, naming the field, for a value that cannot be trained with.
    """

    recipe: ClassVar[str] = "tuned"
    min_steps: ClassVar[int] = 2000  # of 32 images or more: see `for_data`

    hidden_layers: int = 2  # of each network
    learning_rate_decay: bool = False  # linearly, to 0 at the end of the last epoch
    ema_decay: float = 0.0  # of the moving average of G that is sampled from; 0: none
    projection: bool = False  # the label enters D through an inner product instead of its input
    r1_gamma: float = 0.0  # weight of the R1 penalty; learning_rate_decay takes it to a tenth
    conditional_batch_norm: bool = False  # in G, scaled and shifted by z and the label
    edge_features: bool = False  # D also sees image gradients and an edge histogram
    matching_aware_weight: float = 0.0  # of the loss on real images with a wrong label; 0: none
    patch_decoder: bool = False  # G ends in one small MLP that generates a patch at every place
    instance_noise: float = 0.0  # standard deviation of the noise on every image that D sees
    balanced_classes: bool = False  # sample real images of all classes equally often

    @classmethod
    def tuned(cls) -> "TunedConfig":
        """Return the recipe of notebook 06: with all additions except those for other images."""
        return cls(
            embedding_dim=32,
            latent_dim=64,
            hidden_dim=512,
            hidden_layers=3,
            epochs=40,
            batch_size=96,
            learning_rate=1.2e-3,
            betas=(0.0, 0.99),
            learning_rate_decay=True,
            ema_decay=0.999,
            projection=True,
            r1_gamma=2.0,
            conditional_batch_norm=True,
            edge_features=True,
            matching_aware_weight=1.0,
            patch_decoder=True,
        )

    def for_data(self, data) -> "TunedConfig":
        """Return a copy that fits images of your own: see `CGANConfig.for_data`.

        `tuned()` as it is fits FashionMNIST. The copy also has instance noise, without which D can
        tell flat colours from generated ones by edges alone, and whole classes die; batches of 32
        for fewer than 3,200 images, up to the recipe's own size; balanced classes if the largest
        has more than four times as many images as the smallest; and no matching-aware loss for a
        single class.
        """
        count, sizes = len(data), data.labels.bincount(minlength=len(data.classes))
        batch_size = min(self.batch_size, max(32, count // 100), count)
        while 0 < count % batch_size < self.min_batch_size:  # no last batch of one image
            batch_size -= 1
        config = self.replace(
            batch_size=batch_size,
            instance_noise=0.1,
            balanced_classes=bool(sizes.max() > UNEQUAL * sizes.min()),
            matching_aware_weight=self.matching_aware_weight if len(data.classes) > 1 else 0.0,
        )
        return super(TunedConfig, config).for_data(data)

    @property
    def min_batch_size(self) -> int:
        return 2 if self.conditional_batch_norm else 1  # batch norm cannot train on one image

    def __post_init__(self):
        super().__post_init__()
        if not self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1); got {self.ema_decay}")
        if self.matching_aware_weight > 0 and not (self.projection and self.num_classes > 1):
            raise ValueError(
                "matching_aware_weight must be 0 without projection or with one class; got "
                f"{self.matching_aware_weight}, projection {self.projection}, "
                f"{self.num_classes} classes"
            )


# -- the generator


class TunedGenerator(Generator):
    """G with a choice of depth, conditional batch norm and a patch decoder.

    forward and decode: see `Generator`.
    """

    def __init__(self, config: TunedConfig):
        nn.Module.__init__(self)  # and not Generator's, which creates other layers
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        inputs = config.latent_dim + config.embedding_dim
        self.hidden = _hidden_layers(config, inputs, bias=not config.conditional_batch_norm)
        self.output = PatchDecoder(config) if config.patch_decoder else _LinearDecoder(config)
        self.norms = _norms(config, *[config.hidden_dim] * config.hidden_layers)
        # z's standard deviation in `sample`; in training it is 1. Held-out images chose 1.1 for the
        # whole recipe, which without it has too little variety.
        self.latent_scale = 1.1 if config.patch_decoder else 1.0

    def decode(self, z: Tensor, embedded: Tensor) -> Tensor:
        h = inputs = torch.cat([z, embedded], dim=1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            h = F.relu(norm(layer(h), inputs))
        return torch.tanh(self.output(h, inputs))


class ConditionalBatchNorm(nn.Module):
    """Batch norm, then a scale and a shift of each unit that depend on z and the label.

    On the label: Miyato & Koyama 2018 (arXiv 1802.05637), after De Vries et al. 2017 (arXiv
    1707.00683), section 3, who use a question; on z: Chen et al. 2019 (arXiv 1810.01365), section
    2. Both are computed from z and the one label embedding, as in Brock et al. 2019 (arXiv
    1809.11096), section 3, so that a blend of two labels has them too.
    h float (..., N, units), inputs (N, latent_dim + embedding_dim) -> (..., N, units).
    """

    def __init__(self, config: TunedConfig, units: int):
        super().__init__()
        self.normalize = nn.BatchNorm1d(units, affine=False)
        inputs = config.latent_dim + config.embedding_dim
        self.scale_and_shift = nn.Linear(inputs, 2 * units)
        for start in self.scale_and_shift.parameters():  # at first: plain batch norm
            nn.init.zeros_(start)

    def forward(self, h: Tensor, inputs: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift(inputs).chunk(2, dim=1)
        normalized = self.normalize(h.flatten(0, -2)).reshape(h.shape)
        return (1 + scale) * normalized + shift


class PatchDecoder(nn.Module):
    """G's last layers: one small network, shared by all places, generates a patch at each.

    The places lie 4 pixels apart. Each has a few features of its own, and one small MLP generates
    from them a patch of 8 x 8 pixels around it; where patches overlap, they are added. Texture
    learned at one place is therefore available at all. In the language of convolutional networks
    this is a 1 x 1 convolution and a transposed one.
    h (N, hidden_dim), inputs (N, latent_dim + embedding_dim) -> (N, *image_shape), before Tanh.
    """

    STRIDE, PATCH, FEATURES, WIDTH = 4, 8, 24, 64

    def __init__(self, config: TunedConfig):
        super().__init__()
        channels, *self.size = config.image_shape
        self.canvas = [math.ceil(n / self.STRIDE) * self.STRIDE for n in self.size]
        places = math.prod(n // self.STRIDE for n in self.canvas)
        bias = not config.conditional_batch_norm
        self.features = nn.Linear(config.hidden_dim, self.FEATURES * places, bias=bias)
        self.hidden = nn.Linear(self.FEATURES, self.WIDTH, bias=bias)
        self.output = nn.Linear(self.WIDTH, channels * self.PATCH**2)
        self.norms = _norms(config, self.FEATURES, self.WIDTH)

    def forward(self, h: Tensor, inputs: Tensor) -> Tensor:
        feature_norm, hidden_norm = self.norms
        places = self.features(h).unflatten(1, (self.FEATURES, -1)).permute(2, 0, 1)
        places = F.relu(feature_norm(places, inputs))  # (places, N, features)
        patches = self.output(F.relu(hidden_norm(self.hidden(places), inputs)))
        images = add_patches(patches, *self.canvas)  # (N, channels, *canvas)
        height, width = self.size
        return images[:, :, :height, :width].contiguous()


def add_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Lay patches of 8 x 8 pixels onto an image, centred 4 pixels apart; where they overlap, add.

    Float (places, N, C x 8 x 8), the places row by row -> float (N, C, height, width), which are
    multiples of 4. `F.fold` computes the same, but on CUDA its gradient starts a kernel per image.
    """
    stride = PatchDecoder.STRIDE
    places = patches.permute(1, 2, 0).unflatten(2, (height // stride, width // stride))
    halves = places.unflatten(1, (-1, 2, stride, 2, stride)).unbind(2)
    (a, b), (c, d) = (half.unbind(3) for half in halves)  # (N, C, 4, 4, rows, columns) each
    cells = F.pad(a, (0, 1, 0, 1)) + F.pad(b, (1, 0, 0, 1)) + F.pad(c, (0, 1, 1, 0))
    cells = cells + F.pad(d, (1, 0, 1, 0))  # (N, C, 4, 4, rows + 1, columns + 1)
    pixels = cells.permute(1, 4, 2, 5, 3, 0).flatten(3, 4).flatten(1, 2)
    margin = stride // 2
    return pixels[:, margin:-margin, margin:-margin].permute(3, 0, 1, 2)


class _LinearDecoder(nn.Linear):
    """The plain last layer, called like a `PatchDecoder`."""

    def __init__(self, config):
        super().__init__(config.hidden_dim, config.image_size)
        self.image_shape = config.image_shape

    def forward(self, h, inputs):
        return super().forward(h).unflatten(1, self.image_shape)


class _NoNorm(nn.Module):
    """No normalisation, called like a `ConditionalBatchNorm`."""

    def forward(self, h, inputs):
        return h


def _norms(config, *units):
    """A norm for each of these layers; the shift of a conditional one replaces the bias."""
    conditional = config.conditional_batch_norm
    return nn.ModuleList(
        ConditionalBatchNorm(config, n) if conditional else _NoNorm() for n in units
    )


def _hidden_layers(config, inputs, bias=True):
    widths = [inputs] + [config.hidden_dim] * config.hidden_layers
    return nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in itertools.pairwise(widths))


# -- the discriminator


class TunedDiscriminator(nn.Module):
    """D with a choice of depth and of edge features; the label's embedding joins its input.

    forward: see `Discriminator`.
    """

    def __init__(self, config: TunedConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        self.add_layers(config, config.image_size + config.embedding_dim)

    def add_layers(self, config, inputs):
        self.hidden = _hidden_layers(config, inputs)
        if config.edge_features:
            self.hidden[0] = EdgeFeatures(config, inputs)
        self.output = nn.Linear(config.hidden_dim, 1)

    def extract_features(self, inputs: Tensor) -> Tensor:
        h = inputs
        for layer in self.hidden:
            h = F.leaky_relu(layer(h), 0.2)
        return h

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.cat([images.flatten(1), self.embedding(labels)], dim=1)
        return self.output(self.extract_features(inputs)).squeeze(1)


class ProjectionDiscriminator(TunedDiscriminator):
    """D whose logit is a linear function of the features plus their product with the embedding.

    Miyato & Koyama 2018 (arXiv 1802.05637), equation 3. images (N, *image_shape), labels int64
    (N,) -> logits (N,); without labels: of each image with every label, (N, num_classes).
    """

    def __init__(self, config: TunedConfig):
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(config.num_classes, config.hidden_dim)
        nn.init.normal_(self.embedding.weight, std=config.hidden_dim**-0.5)
        self.add_layers(config, config.image_size)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.extract_features(images.flatten(1))
        return select_label_logit(self.output(h) + h @ self.embedding.weight.T, labels)


def select_label_logit(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Select each image's logit for its own label: (N, num_classes), (N,) -> (N,); None: all."""
    return logits if labels is None else logits.gather(1, labels.unsqueeze(1)).squeeze(1)


class EdgeFeatures(nn.Linear):
    """D's first layer, with fixed edge features beside the pixels: gradients and a histogram.

    The features expose local structure, which an MLP learns slowly because it does not know which
    pixels are neighbours. They are fixed; nothing of them is learned, and D has no convolution.
    The gradients are not computed image by image: a weight on a gradient equals a weight added to
    one pixel and taken from its neighbour. So the product with the weights, where most of D's time
    goes, has 980 columns instead of 2,548 for 28 x 28 pixels, with the same result.
    inputs float (N, inputs): the pixels, then D's other inputs -> (N, hidden_dim).
    The columns of its weight: pixels, gradients, other inputs, histogram.
    """

    def __init__(self, config: TunedConfig, inputs: int):
        check_count("inputs", inputs, minimum=config.image_size)
        self.image_shape = config.image_shape
        gradients = image_gradients(torch.zeros(1, *config.image_shape))
        others = inputs - config.image_size + edge_histogram(gradients).numel()
        self.columns = [config.image_size, gradients.numel(), others]
        super().__init__(sum(self.columns), config.hidden_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        pixels, gradients, others = self.weight.split(self.columns, dim=1)
        gradients = gradients.unflatten(1, (-1, *self.image_shape[1:]))
        weight = torch.cat([pixels + fold_gradient_weights(gradients).flatten(1), others], dim=1)
        images = inputs[:, : self.columns[0]].unflatten(1, self.image_shape)
        histogram = edge_histogram(image_gradients(images)).flatten(1)
        return F.linear(torch.cat([inputs, histogram], dim=1), weight, self.bias)


def image_gradients(images: Tensor) -> Tensor:
    """Return the finite differences of each pixel to the next below and to the right, times ten.

    Images float (N, C, H, W) -> float (N, 2 C, H, W): first all vertical differences, 0 in the
    last row, then all horizontal ones, 0 in the last column. Times ten, because they are small.
    """
    down = images.diff(dim=2, append=images[:, :, -1:])
    right = images.diff(dim=3, append=images[:, :, :, -1:])
    return 10 * torch.cat([down, right], dim=1)


def fold_gradient_weights(weights: Tensor) -> Tensor:
    """Fold weights on image gradients into the equivalent pixel weights.

    Float (N, 2 C, H, W) -> float (N, C, H, W), such that for any images
    (weights * image_gradients(images)).sum() = (fold_gradient_weights(weights) * images).sum().
    """
    down, right = weights.chunk(2, dim=1)
    down = F.pad(down[:, :, :-1], (0, 0, 1, 1)).diff(dim=2)
    right = F.pad(right[:, :, :, :-1], (1, 1)).diff(dim=3)
    return -10 * (down + right)


def edge_histogram(gradients: Tensor) -> Tensor:
    """Return the mean strength of each direction's gradients in cells of 4 x 4 pixels, times three.

    Float (N, C, H, W) -> float (N, 2 C, H / 4, W / 4), rounded up: first the mean of the positive
    gradients in each cell, then of the negative ones, as a positive number. It measures how rough a
    texture is, whatever its pattern. The idea is that of Dalal & Triggs 2005, "Histograms of
    oriented gradients for human detection", section 6; ours has four directions and no
    normalisation.
    """
    rises_and_falls = torch.cat([gradients.relu(), (-gradients).relu()], dim=1)
    return 3 * F.avg_pool2d(rises_and_falls, 4, ceil_mode=True)


@create_networks.register
def _(config: TunedConfig):
    generator = TunedGenerator(config)
    discriminator = (ProjectionDiscriminator if config.projection else TunedDiscriminator)(config)
    if config.ema_decay == 0:
        return generator, discriminator, None
    return generator, discriminator, copy.deepcopy(generator).requires_grad_(False).eval()


# -- the losses and the step


def r1_penalty(real_logits: Tensor, images: Tensor) -> Tensor:
    """R1: the squared norm of D's gradient at real images, averaged over the batch.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9, without gamma / 2. A steep D lets G run
    past the real images; a flat one lets it come to rest there. Logits (N,), computed from images
    (N, C, H, W) that require a gradient -> scalar, itself differentiable.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def matching_aware_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - D(x, y')), averaged over real images x and all labels y' that are not theirs.

    An image that looks real must not excuse a wrong label: Reed et al. 2016 (arXiv 1605.05396),
    section 4.2, who sample one wrong label for each image. Logits (N, num_classes), of each image
    with every label, and its own labels int64 (N,) -> scalar; ln 2 when D only guesses.
    """
    wrong = torch.ones_like(logits).scatter(1, labels.unsqueeze(1), 0)
    rejected = F.binary_cross_entropy_with_logits(
        logits, torch.zeros_like(logits), weight=wrong, reduction="sum"
    )
    return rejected / (logits.numel() - len(logits))


def discriminator_step(
    state: TrainingState, images: Tensor, labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Update D once as `training.discriminator_step` does, with R1 and the matching-aware loss.

    Returns the loss without these two, and both logits (N,), detached.
    """
    config, extra = state.config, 0
    applies_r1 = state.schedule["applies_r1"]
    images = images.detach().requires_grad_(applies_r1)
    both, both_labels = torch.cat([images, fake.detach()]), torch.cat([labels, fake_labels])
    if config.matching_aware_weight > 0:
        every_label = state.discriminator(both)
        logits = select_label_logit(every_label, both_labels)
        mismatched = matching_aware_loss(every_label[: len(images)], labels)
        extra += config.matching_aware_weight * mismatched
    else:
        logits = state.discriminator(both, both_labels)
    real_logits, fake_logits = logits.split([len(images), len(fake)])
    loss = discriminator_loss(real_logits, fake_logits)
    if applies_r1:  # seldom, and then with so much more weight
        (group,) = state.discriminator_optimizer.param_groups
        # Later, in smaller steps, D may be steeper: as in Huang et al. 2024 (arXiv 2501.05441).
        gamma = config.r1_gamma * (0.1 + 0.9 * group["lr"] / config.learning_rate)
        extra += R1_INTERVAL * gamma / 2 * r1_penalty(real_logits, images)
    state.discriminator_optimizer.zero_grad()
    (loss + extra).backward()
    state.discriminator_optimizer.step()
    return loss.detach(), real_logits.detach(), fake_logits.detach()


@torch.no_grad()
def update_ema(state: TrainingState) -> None:
    """Move the averaged generator towards the trained one, whose parameters fluctuate.

    An exponential moving average of parameters and batch statistics: Yazici et al. 2019 (arXiv
    1806.04498), section 3.
    """
    average, current = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (state.generator_ema, state.generator)
    )
    for mean, value in zip(average, current, strict=True):
        mean.lerp_(value, state.schedule["ema_weight"])


def sample_batch(state: TrainingState, data: LabelledImages, batch: Tensor) -> tuple[Tensor, ...]:
    """Return what `training.sample_batch` does, and with instance noise also the noise.

    It is float (N, 2, C, H, W), for the real images and for the generated ones. D compares noisy
    images with noisy images, so that no pattern finer than the noise gives one kind away: Sønderby
    et al. 2016 (arXiv 1610.04490), appendix; Arjovsky & Bottou 2017 (arXiv 1701.04862).
    """
    if state.config.balanced_classes:  # as torch's WeightedRandomSampler does
        ones = torch.ones_like(data.labels, dtype=torch.float32)
        counts = ones.new_zeros(state.config.num_classes).index_add(0, data.labels, ones)
        weights = 1 / counts[data.labels]
        batch = weights.multinomial(len(batch), replacement=True, generator=state.rng)
    inputs = training.sample_batch(state, data, batch)
    deviation = state.config.instance_noise
    if deviation == 0:
        return inputs
    count, *shape = inputs[0].shape
    noise = torch.randn(count, 2, *shape, generator=state.rng, device=state.device)
    return *inputs, noise.mul_(deviation)


def training_step(
    state: TrainingState,
    images: Tensor,
    labels: Tensor,
    z: Tensor,
    fake_labels: Tensor,
    noise: Tensor | None = None,
) -> Tensor:
    """Update D once, then G once as in `training.training_step`, then G's moving average.

    Arguments and result are those of `training.training_step`, with the noise of `sample_batch`;
    `set_schedule` comes before it.
    """
    fake = state.generator(z, fake_labels)
    if noise is not None:
        images, fake = images + noise[:, 0], fake + noise[:, 1]
    loss_d, real_logits, fake_logits = discriminator_step(state, images, labels, fake, fake_labels)
    loss_g = generator_step(state, fake, fake_labels)
    if state.generator_ema is not None:
        update_ema(state)
    return torch.stack([loss_d, loss_g, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()])


def set_schedule(state: TrainingState, total_steps: int | None = None) -> None:
    """Set what changes from step to step: the learning rate, and state.schedule.

    applies_r1: whether the next step has the R1 penalty, every eighth (lazy regularisation: Karras
    et al. 2020, arXiv 1912.04958).
    ema_weight: the weight of the current generator in the next update of its moving average, which
    covers about 1 / (1 - ema_decay) steps; fewer at first, so that the untrained parameters are
    forgotten. total_steps: of the whole run, for the learning rate's decay.
    """
    config = state.config
    kept = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    state.schedule = {
        "applies_r1": config.r1_gamma > 0 and state.step % R1_INTERVAL == 0,
        "ema_weight": 1 - kept,
    }
    if config.learning_rate_decay and total_steps is not None:
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - state.step / total_steps)


@recipe_of.register
def _(config: TunedConfig):
    return sample_batch, training_step, set_schedule

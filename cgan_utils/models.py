"""The two networks: a generator and a discriminator, both MLPs steered by a label embedding.

Conditional GAN: Mirza & Osindero 2014, arXiv 1411.1784, section 3.2. There the label enters as a
one-hot vector; here, as in the blog post, `nn.Embedding` looks up a learned vector for each label.
"""

import contextlib
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from .config import CGANConfig, check_count, check_range, check_tensor, check_type


class Generator(nn.Module):
    """G(z, y): a noise vector and a label become an image.

    forward(z, labels): z float32 (N, latent_dim), labels int64 (N,) in 0..num_classes-1
    -> images float32 (N, *image_shape) in [-1, 1]. Raises TypeError or ValueError for others.
    """

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        inputs = config.latent_dim + config.embedding_dim
        self.hidden = _hidden_layers(config, inputs, bias=not config.conditional_norm)
        if config.shared_patches:
            self.output = SharedPatches(config)
        else:
            self.output = nn.Linear(config.hidden_dim, config.image_size)
        self.norms = _norms(config, *[config.hidden_dim] * config.hidden_layers)

    def forward(self, z, labels):
        check_tensor("z", z, self.embedding.weight.dtype, "N", self.config.latent_dim)
        return self.draw(z, look_up(labels, self.embedding, len(z)))

    def draw(self, z, embedded):
        """The image for any point of the embedding space, a label's row or a blend of rows.

        z (N, latent_dim), embedded float32 (N, embedding_dim) -> images (N, *image_shape).
        """
        check_tensor("z", z, self.embedding.weight.dtype, "N", self.config.latent_dim)
        check_tensor("embedded", embedded, z.dtype, len(z), self.config.embedding_dim)
        h = inputs = torch.cat([z, embedded], dim=1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            h = activate(layer(h), norm, inputs)
        images = self.output(h, inputs) if self.config.shared_patches else self.output(h)
        images = torch.tanh(images)  # the range of the normalised images, [-1, 1]
        return images.reshape(len(z), *self.config.image_shape).to(z.dtype)  # under autocast too


class ConditionalNorm(nn.Module):
    """Batch norm, then a scale and a shift of each unit that follow G's inputs, z and the label.

    By the label: De Vries et al. 2017 (arXiv 1707.00683), section 3; by z: Chen et al. 2019 (arXiv
    1810.01365), section 2. Both are made from z and the one label embedding, as in Brock et al.
    2019 (arXiv 1809.11096), section 3, so that a blend of two labels has them too.
    forward(h, inputs): (..., N, units), (N, latent_dim + embedding_dim) -> (..., N, units).
    """

    def __init__(self, config, units):
        super().__init__()
        check_type("config", config, CGANConfig)
        check_count("units", units)
        self.normalize = nn.BatchNorm1d(units, affine=False)
        inputs = config.latent_dim + config.embedding_dim
        self.scale_and_shift = nn.Linear(inputs, 2 * units)
        for start in self.scale_and_shift.parameters():  # at first: plain batch norm
            nn.init.zeros_(start)

    def forward(self, h, inputs):
        scale, shift = self.scale_and_shift(inputs).chunk(2, dim=1)
        normalized = self.normalize(h.flatten(0, -2)).reshape(h.shape)
        return (1 + scale) * normalized + shift


class SharedPatches(nn.Module):
    """G's last layers, which draw every place of the image with the same weights.

    The places lie 4 pixels apart. Each has a few features of its own, and one small MLP, the same
    for all, draws from them a patch of 8 x 8 pixels around it; where patches overlap, they are
    added. So what is learned of cloth in one place is known in all. One MLP for all places, but
    for single pixels: Anokhin et al. 2021 (arXiv 2011.13775), section 3. In the language of
    convolutional networks these are a 1 x 1 and a transposed convolution.
    forward(h, inputs): (N, hidden_dim), (N, latent_dim + embedding_dim) -> (N, *image_shape).
    """

    STRIDE, PATCH, FEATURES, WIDTH = 4, 8, 24, 64

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
        channels, *self.size = config.image_shape
        self.canvas = [math.ceil(n / self.STRIDE) * self.STRIDE for n in self.size]
        places = math.prod(n // self.STRIDE for n in self.canvas)
        bias = not config.conditional_norm
        self.features = nn.Linear(config.hidden_dim, self.FEATURES * places, bias=bias)
        self.hidden = nn.Linear(self.FEATURES, self.WIDTH, bias=bias)
        self.output = nn.Linear(self.WIDTH, channels * self.PATCH**2)
        self.norms = _norms(config, self.FEATURES, self.WIDTH)

    def forward(self, h, inputs):
        of_features, of_hidden = self.norms
        places = self.features(h).unflatten(1, (self.FEATURES, -1)).permute(2, 0, 1)
        places = activate(places, of_features, inputs)  # (places, N, features)
        patches = self.output(activate(self.hidden(places), of_hidden, inputs))
        patches = patches.permute(1, 2, 0)  # (N, channels x 8 x 8, places)
        margin = (self.PATCH - self.STRIDE) // 2
        images = F.fold(patches, self.canvas, self.PATCH, padding=margin, stride=self.STRIDE)
        height, width = self.size
        return images[:, :, :height, :width]


class Discriminator(nn.Module):
    """D(x, y): how real an image looks, given its label, as one logit.

    forward(images, labels): images float32 (N, *image_shape) in [-1, 1], labels int64 (N,)
    -> logits float32 (N,). `torch.sigmoid(logits)` is the post's probability of being real; the
    losses take the logits because log(sigmoid(x)) in one step stays finite (see `training`).
    forward(images), with projection only: each image with every label -> (N, num_classes).
    """

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
        self.config = config
        inputs = config.image_size
        if config.projection:
            self.embedding = nn.Embedding(config.num_classes, config.hidden_dim)
            nn.init.normal_(self.embedding.weight, std=config.hidden_dim**-0.5)
        else:
            self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
            inputs += config.embedding_dim
        self.hidden = _hidden_layers(config, inputs)
        if config.fine_detail:
            self.hidden[0] = FineDetail(config, inputs)
        self.output = nn.Linear(config.hidden_dim, 1)

    def forward(self, images, labels=None):
        dtype = self.embedding.weight.dtype
        check_tensor("images", images, dtype, "N", *self.config.image_shape)
        h = images.flatten(1)
        if not self.config.projection:
            h = torch.cat([h, look_up(labels, self.embedding, len(images))], dim=1)
        for layer in self.hidden:
            h = F.leaky_relu(layer(h), 0.2)  # a slope below 0 too: G learns only through D
        logits = self.output(h)
        if not self.config.projection:
            return logits.squeeze(1)
        # Miyato & Koyama 2018 (arXiv 1802.05637), equation 3, for each label
        every_label = logits + h @ self.embedding.weight.T
        return every_label if labels is None else pick(every_label, labels)


class FineDetail(nn.Linear):
    """D's first layer, which makes more inputs of the pixels: differences and edge histogram.

    They tell what an MLP, which does not know which pixels are neighbours, is slow to see. The
    differences need not be computed image by image: a weight of a difference is as good as one
    more for the one pixel and one less for the other. So the product with the weights, where most
    of D's time goes, has 980 columns instead of 2,548 for 28 x 28 pixels, with the same result.
    forward(inputs): float (N, inputs), the pixels and then what else D sees -> (N, hidden_dim).
    The columns of its weight: pixels, differences, what else D sees, histogram.
    """

    def __init__(self, config, inputs):
        check_type("config", config, CGANConfig)
        check_count("inputs", inputs, minimum=config.image_size)
        self.image_shape = config.image_shape
        differences = neighbour_differences(torch.zeros(1, *config.image_shape))
        others = inputs - config.image_size + edge_histogram(differences).numel()
        self.columns = [config.image_size, differences.numel(), others]
        super().__init__(sum(self.columns), config.hidden_dim)

    def forward(self, inputs):
        pixels, differences, others = self.weight.split(self.columns, dim=1)
        differences = differences.unflatten(1, (-1, *self.image_shape[1:]))
        weight = torch.cat([pixels + pixel_weights(differences).flatten(1), others], dim=1)
        images = inputs[:, : self.columns[0]].unflatten(1, self.image_shape)
        histogram = edge_histogram(neighbour_differences(images)).flatten(1)
        return F.linear(torch.cat([inputs, histogram], dim=1), weight, self.bias)


def neighbour_differences(images):
    """How much each pixel differs from the next one below and the next to its right, times ten.

    Images float (N, C, H, W) -> float (N, 2 C, H, W): first all differences downwards, 0 in the
    last row, then all to the right, 0 in the last column. Ten times, because they are small.
    """
    check_tensor("images", images, "float", "N", "C", "H", "W")
    down = images.diff(dim=2, append=images[:, :, -1:])
    right = images.diff(dim=3, append=images[:, :, :, -1:])
    return 10 * torch.cat([down, right], dim=1)


def pixel_weights(weights):
    """What weights of the neighbour differences are as weights of the pixels.

    Float (N, 2 C, H, W) -> float (N, C, H, W), such that for any images
    (weights * neighbour_differences(images)).sum() = (pixel_weights(weights) * images).sum().
    """
    check_tensor("weights", weights, "float", "N", "2 C", "H", "W")
    down, right = weights.chunk(2, dim=1)
    down = F.pad(down[:, :, :-1], (0, 0, 1, 1)).diff(dim=2)
    right = F.pad(right[:, :, :, :-1], (1, 1)).diff(dim=3)
    return -10 * (down + right)


def edge_histogram(differences):
    """How strong the differences of each direction are in each cell of 4 x 4 pixels, times three.

    Float (N, C, H, W) -> float (N, 2 C, H / 4, W / 4), rounded up: first the mean of what is above
    0 in each cell, then of what is below, as a positive number. A histogram of oriented gradients
    with four directions: Dalal & Triggs 2005, "Histograms of oriented gradients for human
    detection", section 6. It tells how rough the cloth is there, whatever the pattern.
    """
    check_tensor("differences", differences, "float", "N", "C", "H", "W")
    rises_and_falls = torch.cat([differences.relu(), (-differences).relu()], dim=1)
    return 3 * F.avg_pool2d(rises_and_falls, 4, ceil_mode=True)


def look_up(labels, embedding, count):
    """`embedding(labels)`, for labels int64 (count,) that must have a row there."""
    check_tensor("labels", labels, torch.int64, count)
    with label_range(labels, embedding.num_embeddings):
        return embedding(labels)


def pick(every_label, labels):
    """Of each image's logits with every label, (N, num_classes), that of its own label -> (N,)."""
    check_tensor("labels", labels, torch.int64, len(every_label))
    with label_range(labels, every_label.shape[1]):
        return every_label.gather(1, labels.unsqueeze(1)).squeeze(1)


@contextlib.contextmanager
def label_range(labels, num_classes):
    """Have an index that is out of range named for what it is, one of the labels int64 (N,)."""
    try:
        yield
    except (IndexError, RuntimeError):
        check_range("labels", labels, num_classes)
        raise


def activate(h, norm, inputs):
    """ReLU, after a ConditionalNorm if there is one."""
    return F.relu(h if norm is None else norm(h, inputs))


def _norms(config, *units):
    """A ConditionalNorm for each of these layers, or None. Its shift is a bias."""
    return nn.ModuleList(
        ConditionalNorm(config, n) if config.conditional_norm else None for n in units
    )


def _hidden_layers(config, inputs, bias=True):
    widths = [inputs] + [config.hidden_dim] * config.hidden_layers
    return nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in itertools.pairwise(widths))

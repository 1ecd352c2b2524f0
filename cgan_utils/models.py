"""The two networks: a generator and a discriminator, both MLPs steered by a label embedding.

Conditional GAN: Mirza & Osindero 2014, arXiv 1411.1784, section 3.2. There the label enters as a
one-hot vector; here, as in the blog post, `nn.Embedding` looks up a learned vector for each label.
"""

import contextlib
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .config import CGANConfig, check_range, check_tensor, check_type


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
        self.output = nn.Linear(config.hidden_dim, config.image_size)
        norms = (ConditionalNorm(config) for _ in self.hidden if config.conditional_norm)
        self.norms = nn.ModuleList(norms)  # each has a shift, which is a bias

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
        for layer, norm in itertools.zip_longest(self.hidden, self.norms):
            h = layer(h) if norm is None else norm(layer(h), inputs)
            h = F.relu(h)
        images = torch.tanh(self.output(h))  # the range of the normalised images, [-1, 1]
        return images.unflatten(1, self.config.image_shape).to(z.dtype)  # under autocast too


class ConditionalNorm(nn.Module):
    """Batch norm, then a scale and a shift of each unit that follow G's inputs, z and the label.

    By the label: De Vries et al. 2017 (arXiv 1707.00683), section 3; by z: Chen et al. 2019 (arXiv
    1810.01365), section 2. Both are made from z and the one label embedding, as in Brock et al.
    2019 (arXiv 1809.11096), section 3, so that a blend of two labels has them too.
    forward(h, inputs): (N, hidden_dim), (N, latent_dim + embedding_dim) -> (N, hidden_dim).
    """

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
        self.normalize = nn.BatchNorm1d(config.hidden_dim, affine=False)
        inputs = config.latent_dim + config.embedding_dim
        self.scale_and_shift = nn.Linear(inputs, 2 * config.hidden_dim)
        for start in self.scale_and_shift.parameters():  # at first: plain batch norm
            nn.init.zeros_(start)

    def forward(self, h, inputs):
        scale, shift = self.scale_and_shift(inputs).chunk(2, dim=1)
        return (1 + scale) * self.normalize(h) + shift


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
        if config.fine_detail:
            inputs += fine_detail(torch.zeros(1, *config.image_shape)).shape[1]
        if config.projection:
            self.embedding = nn.Embedding(config.num_classes, config.hidden_dim)
            nn.init.normal_(self.embedding.weight, std=config.hidden_dim**-0.5)
        else:
            self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
            inputs += config.embedding_dim
        self.hidden = _hidden_layers(config, inputs)
        self.output = nn.Linear(config.hidden_dim, 1)

    def forward(self, images, labels=None):
        dtype = self.embedding.weight.dtype
        check_tensor("images", images, dtype, "N", *self.config.image_shape)
        h = images.flatten(1)
        if self.config.fine_detail:
            h = torch.cat([h, fine_detail(images)], dim=1)
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


def fine_detail(images):
    """What an MLP, which does not know which pixels are neighbours, is slow to see in them.

    Images float (N, C, H, W) -> float (N, F): the differences and the edge histogram of each image
    in one row, 28 x 28 pixels giving F = 2 x 784 + 4 x 49 numbers.
    """
    differences = neighbour_differences(images)
    return torch.cat([differences.flatten(1), edge_histogram(differences).flatten(1)], dim=1)


def neighbour_differences(images):
    """How much each pixel differs from the next one below and the next to its right, times ten.

    Images float (N, C, H, W) -> float (N, 2 C, H, W): first all differences downwards, 0 in the
    last row, then all to the right, 0 in the last column. Ten times, because they are small.
    """
    check_tensor("images", images, "float", "N", "C", "H", "W")
    down = images.diff(dim=2, append=images[:, :, -1:])
    right = images.diff(dim=3, append=images[:, :, :, -1:])
    return 10 * torch.cat([down, right], dim=1)


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


def _hidden_layers(config, inputs, bias=True):
    widths = [inputs] + [config.hidden_dim] * config.hidden_layers
    return nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in itertools.pairwise(widths))

"""The two networks: a generator and a discriminator, both MLPs that are given the label.

Conditional GAN: Mirza & Osindero 2014, arXiv 1411.1784, section 3.2. There the label enters as a
one-hot vector; here, as in the blog post, `nn.Embedding` looks up a learned vector for each label.
"""

import functools

import torch
from torch import Tensor, nn

from .config import CGANConfig


class Generator(nn.Module):
    """G(z, y): turn a noise vector and a label into an image.

    z float32 (N, latent_dim), labels int64 (N,) -> images float32 (N, *image_shape) in [-1, 1].
    """

    def __init__(self, config: CGANConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        self.layers = nn.Sequential(
            nn.Linear(config.latent_dim + config.embedding_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.image_size),
            nn.Tanh(),  # the range of the normalised images, [-1, 1]
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.decode(z, self.embedding(labels))

    def decode(self, z: Tensor, embedded: Tensor) -> Tensor:
        """Generate from any embedding (N, embedding_dim): a label's, or a blend of several."""
        images = self.layers(torch.cat([z, embedded], dim=1))  # (N, channels * height * width)
        return images.unflatten(1, self.config.image_shape)


class Discriminator(nn.Module):
    """D(x, y): say how real an image looks, given its label, as one logit.

    images float32 (N, *image_shape) in [-1, 1], labels int64 (N,) -> logits float32 (N,).
    `torch.sigmoid(logits)` is the post's probability of being real. The losses take the logits,
    because log(sigmoid(x)) computed in one step stays finite.
    """

    def __init__(self, config: CGANConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        self.layers = nn.Sequential(
            nn.Linear(config.image_size + config.embedding_dim, config.hidden_dim),
            nn.LeakyReLU(0.2),  # a slope below 0 too: G learns only through D
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(config.hidden_dim, 1),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.cat([images.flatten(1), self.embedding(labels)], dim=1)
        return self.layers(inputs).squeeze(1)


@functools.singledispatch
def create_networks(config: CGANConfig) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """Return G, D and G's moving average (None: there is none) with fresh parameters.

    An add-on registers its own networks for its own kind of configuration.
    """
    return Generator(config), Discriminator(config), None

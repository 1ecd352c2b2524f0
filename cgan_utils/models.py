"""The two networks: a generator and a discriminator, both MLPs steered by a label embedding.

Conditional GAN: Mirza & Osindero 2014, arXiv 1411.1784, section 3.2. There the label enters as a
one-hot vector; here, as in the blog post, `nn.Embedding` looks up a learned vector for each label.
"""

import torch
from torch import nn

from .config import CGANConfig, check_type


class Generator(nn.Module):
    """G(z, y): a noise vector and a label become an image.

    forward(z, labels): z float32 (N, latent_dim), labels int64 (N,) in 0..num_classes-1
    -> images float32 (N, *image_shape) in [-1, 1].
    """

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
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

    def forward(self, z, labels):
        return self.draw(z, self.embedding(labels))

    def draw(self, z, embedded):
        """The image for any point of the embedding space, a label's row or a blend of rows.

        z (N, latent_dim), embedded float32 (N, embedding_dim) -> images (N, *image_shape).
        """
        z_and_label = torch.cat([z, embedded], dim=1)
        return self.layers(z_and_label).unflatten(1, self.config.image_shape)


class Discriminator(nn.Module):
    """D(x, y): how real an image looks, given its label, as one logit.

    forward(images, labels): images float32 (N, *image_shape) in [-1, 1], labels int64 (N,)
    -> logits float32 (N,). `torch.sigmoid(logits)` is the post's probability of being real; the
    losses take the logits because log(sigmoid(x)) in one step stays finite (see `training`).
    """

    def __init__(self, config):
        super().__init__()
        check_type("config", config, CGANConfig)
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim)
        self.layers = nn.Sequential(
            nn.Linear(config.image_size + config.embedding_dim, config.hidden_dim),
            nn.LeakyReLU(0.2),  # a slope below 0 too: G learns only from gradients that pass D
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(config.hidden_dim, 1),
        )

    def forward(self, images, labels):
        image_and_label = torch.cat([images.flatten(1), self.embedding(labels)], dim=1)
        return self.layers(image_and_label).squeeze(1)

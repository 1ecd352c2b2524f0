"""How good is a small convolutional conditional GAN of the usual settings?

    python benchmarks/convolutional.py

trains the networks below with the settings of DCGAN (Radford et al. 2016, arXiv 1511.06434): Adam
with a rate of 2e-4 and beta_1 = 0.5, weights N(0, 0.02), batch norm. The label enters through an
embedding: beside z in G, as one more channel in D. Writes results/convolutional.json, in the form
of quality.json; notebook 06 shows it as a row beside the two recipes.
"""

from pathlib import Path

import torch
import tyro
from quality import measure, print_table, write_results
from torch import nn

import cgan_utils as cg
from cgan_utils.models import create_networks

RESULTS = Path(__file__).parent / "results" / "convolutional.json"


class ConvolutionalConfig(cg.CGANConfig):
    """The fields of the original recipe; `create_networks` makes other networks of them."""


class ConvolutionalGenerator(cg.Generator):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Linear(config.latent_dim + config.embedding_dim, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, kernel_size=4, stride=2, padding=1),  # -> 14 x 14
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, kernel_size=4, stride=2, padding=1),  # -> 28 x 28
            nn.Tanh(),
            nn.Flatten(),
        )


class ConvolutionalDiscriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes, config.image_size)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 32, kernel_size=4, stride=2, padding=1),  # -> 14 x 14
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, kernel_size=4, stride=2, padding=1),  # -> 7 x 7
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1),
        )

    def forward(self, images, labels):
        label_channel = self.embedding(labels).view_as(images)
        return self.layers(torch.cat([images, label_channel], dim=1)).squeeze(1)


def initialize(module):
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@create_networks.register
def _(config: ConvolutionalConfig):
    networks = ConvolutionalGenerator(config), ConvolutionalDiscriminator(config)
    return *(network.apply(initialize) for network in networks), None


def training_step(state, images, labels, z, fake_labels):
    """Update D, then G. D sees real and generated images in batches of their own.

    Otherwise its batch norm would mix the two kinds, which is not usual.
    """
    fake = state.generator(z, fake_labels)
    real_logits = state.discriminator(images, labels)
    fake_logits = state.discriminator(fake.detach(), fake_labels)
    loss_d = cg.discriminator_loss(real_logits, fake_logits)
    state.discriminator_optimizer.zero_grad()
    loss_d.backward()
    state.discriminator_optimizer.step()
    loss_g = cg.generator_step(state, fake, fake_labels)
    outputs = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
    return torch.stack([loss_d, loss_g, *outputs]).detach()


def main(output: Path = RESULTS, seeds: tuple[int, ...] = (0, 1, 2), epochs: int = 5):
    """Measure and write the results.

    Args:
        seeds: at least two
        epochs: of each run
    """
    config = ConvolutionalConfig(batch_size=64, betas=(0.5, 0.999), epochs=epochs)
    result = measure("convolutional", config, seeds, step=training_step)
    result["config"]["recipe"] = "convolutional"
    write_results(output, {"convolutional": result})
    print_table({"convolutional": result})


if __name__ == "__main__":
    tyro.cli(main)

"""The central object: a training run at one moment."""

import dataclasses

import torch
from torch import nn

from ._checks import check_count, check_type
from ._runtime import choose_device, default_modes, make_rng, seeded
from .config import CGANConfig
from .models import create_networks

PARAMETERS, NOISE, ORDER = range(3)  # the purposes of a run's random numbers: see `make_rng`


@dataclasses.dataclass
class TrainingState:
    """A training run at one moment; `train` returns it and passes it to each callback."""

    config: CGANConfig
    seed: int  # fixes the initial parameters, the order of the images and all noise
    generator: nn.Module  # the one Adam trains
    discriminator: nn.Module
    generator_ema: nn.Module | None  # the moving average of the generator, if the recipe has one
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam
    rng: torch.Generator  # samples z and the labels asked of G
    step: int = 0  # updates made so far, of each network
    stats: torch.Tensor | None = None  # this epoch's statistics so far, one row per step
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # a mean per epoch
    schedule: dict[str, float | bool] = dataclasses.field(default_factory=dict)  # at this step
    engine: str | None = None  # the engine that ran the last training

    @classmethod
    @default_modes()
    def create(
        cls, config: CGANConfig, seed: int = 0, device: str | torch.device = "cpu"
    ) -> "TrainingState":
        """Return fresh networks and optimisers: for one seed the same on every device.

        The networks are in train mode: a `training_step` can follow.
        """
        check_type("config", config, CGANConfig)
        check_count("seed", seed, minimum=0)
        device = choose_device(device)
        with seeded(seed, PARAMETERS):
            networks = create_networks(config)
        generator, discriminator, generator_ema = (
            None if network is None else network.to(device) for network in networks
        )

        def adam(network):
            return torch.optim.Adam(
                network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
            )

        return cls(
            config=config,
            seed=int(seed),
            generator=generator,
            discriminator=discriminator,
            generator_ema=generator_ema,
            generator_optimizer=adam(generator),
            discriminator_optimizer=adam(discriminator),
            rng=make_rng(seed, NOISE, device=device),
        )

    @property
    def device(self) -> torch.device:
        return self.rng.device

    @property
    def epoch(self) -> int:
        """Whole epochs trained so far."""
        return len(self.history.get("loss_d", ()))

    def shuffled(self, count: int, epoch: int = 0) -> torch.Tensor:
        """Return the order of an epoch's `count` images: a permutation, int64 (count,)."""
        order = torch.randperm(count, generator=make_rng(self.seed, ORDER, epoch))
        return order.to(self.device)

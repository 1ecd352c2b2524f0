"""The state of a training run, and how it is kept on disk.

A checkpoint is one file with everything needed to go on: config, both networks, both optimisers,
the noise generator's state, the step counter and the history.
"""

import copy
import dataclasses
import logging
import os
import zipfile
from pathlib import Path

import torch

from .config import (
    CGANConfig,
    check_count,
    check_type,
    choose_device,
    random_stream,
    seeded,
    write_atomically,
)
from .models import Discriminator, Generator

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3

PENALTY_EVERY = 8  # steps

WEIGHTS, NOISE, ORDER = range(3)  # what a run draws random numbers for: see `random_stream`


@dataclasses.dataclass
class TrainingState:
    """A training run at one moment; what `train` returns, and what each callback is given."""

    config: CGANConfig
    seed: int  # fixes the initial weights, the order of the images and all noise
    generator: Generator  # the one to sample from
    live_generator: Generator  # the one Adam updates; the same, unless the recipe averages it
    discriminator: Discriminator
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam
    noise: torch.Generator  # the random numbers behind z and the labels asked of G
    step: int = 0  # updates made so far, of each network
    measures: torch.Tensor | None = None  # this epoch's so far, one row per step
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # one mean per epoch

    @classmethod
    def create(cls, config, seed=0, device="cpu"):
        """Fresh networks and optimisers. The same seed gives the same weights on every device."""
        check_type("config", config, CGANConfig)
        check_count("seed", seed, minimum=0)
        device = choose_device(device)
        with seeded(seed, WEIGHTS):
            generator = Generator(config).to(device)
            discriminator = Discriminator(config).to(device)
        live_generator = generator
        if config.ema_decay > 0:
            generator = copy.deepcopy(live_generator).requires_grad_(False)

        def adam(network):
            return torch.optim.Adam(
                network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
            )

        return cls(
            config=config,
            seed=seed,
            generator=generator,
            live_generator=live_generator,
            discriminator=discriminator,
            generator_optimizer=adam(live_generator),
            discriminator_optimizer=adam(discriminator),
            noise=random_stream(seed, NOISE, device=device),
        )

    @property
    def device(self):
        return self.noise.device

    @property
    def penalized(self):
        """Whether the next step has the gradient penalty: Karras et al. 2020, arXiv 1912.04958."""
        return self.config.gradient_penalty > 0 and self.step % PENALTY_EVERY == 0

    @property
    def average_weight(self):
        """Of the live generator in the average, at the next step.

        The average is over about 1 / (1 - ema_decay) steps; over fewer at first, so that it forgets
        the untrained weights.
        """
        return 1 - min(self.config.ema_decay, (1 + self.step) / (10 + self.step))

    @property
    def epoch(self):
        """Whole epochs trained so far."""
        return len(self.history.get("loss_d", ()))


_PARTS = (
    "generator",
    "live_generator",
    "discriminator",
    "generator_optimizer",
    "discriminator_optimizer",
)


def save_checkpoint(path, state):
    """Write a `TrainingState` to `path`, whole or not at all; returns the path."""
    check_type("path", path, str, os.PathLike)
    check_type("state", state, TrainingState)
    contents = {
        "format_version": FORMAT_VERSION,
        "config": state.config.to_dict(),
        "seed": state.seed,
        "step": state.step,
        "measures": state.measures,
        "history": state.history,
        "noise": state.noise.get_state(),
        "device": state.device.type,
        **{part: getattr(state, part).state_dict() for part in _PARTS},
    }
    return write_atomically(path, lambda file: torch.save(contents, file))


def save_rolling(folder, state, keep=2):
    """Save as `folder`/step-000000012.pt, remove all but the newest `keep`; returns the path."""
    check_type("folder", folder, str, os.PathLike)
    check_type("state", state, TrainingState)
    check_count("keep", keep)
    folder = Path(folder)
    path = save_checkpoint(folder / f"step-{state.step:09d}.pt", state)
    cut_off = folder.glob(".step-*.pt.*")
    for old in [*rolling_checkpoints(folder)[keep:], *cut_off]:
        old.unlink(missing_ok=True)
    return path


def newest_checkpoint(folder):
    """The newest whole checkpoint that `save_rolling` left in `folder`, or None.

    Damaged ones are passed over, which is why it keeps more than one.
    """
    check_type("folder", folder, str, os.PathLike)
    for path in rolling_checkpoints(Path(folder)):
        try:
            load_checkpoint(path)
            return path
        except ValueError as damage:
            logger.warning("passed over: %s", damage)
    return None


def rolling_checkpoints(folder):
    """Its checkpoints, the last written first: a new run counts before an older, longer one."""

    def written(path):
        return path.stat().st_mtime_ns, path.name

    return sorted(folder.glob("step-*.pt"), key=written, reverse=True)


def load_checkpoint(path, device="cpu"):
    """Read a `TrainingState` back; it continues exactly where it was saved.

    Only tensors and plain values are unpickled (`weights_only=True`), so a file from a stranger
    cannot run code. Raises FileNotFoundError if there is no such file, ValueError if it is damaged
    or no checkpoint of this package.
    """
    check_type("path", path, str, os.PathLike)
    path = Path(path)
    device = choose_device(device)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        contents = torch.load(path, map_location=device, weights_only=True)
        version = contents["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}; this package reads {FORMAT_VERSION}")
        config = CGANConfig.from_dict(contents["config"])
        state = TrainingState.create(config, contents["seed"], device)
        for part in _PARTS:
            getattr(state, part).load_state_dict(contents[part])
        state.step = contents["step"]
        state.measures = contents["measures"]
        state.history = contents["history"]
        if contents["device"] == state.device.type:  # another device draws other numbers anyway
            state.noise.set_state(contents["noise"].cpu())
    except Exception as error:
        raise ValueError(f"path: {path} is not a whole cgan_utils checkpoint ({error})") from error
    return state

"""The two losses, the training step and the loop around it.

Goodfellow et al. 2014 (arXiv 1406.2661), equation 1 and algorithm 1, with a label given to both
networks as in Mirza & Osindero 2014 (arXiv 1411.1784), equation 2.
"""

import contextlib
import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ._checks import check_count, check_type, empty_classes
from ._runtime import choose_device, default_modes, deferred_interrupts, progress_bar
from .checkpoints import (
    checkpoint_path,
    claimed_folder,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from .config import STATS, CGANConfig
from .data import LabelledImages, normalize
from .diagnosis import warn_of_trouble
from .engines import ENGINES, make_engine, process_count
from .state import TrainingState

SHORT_EPOCH = 20  # steps; of many epochs shorter than this, not every one is printed and saved ...
MOST_REPORTS = 40  # ... but so many, evenly spaced
ENOUGH_TO_JUDGE = 1000  # steps, after which a class that does not depend on z is a bad sign


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x, y) - log(1 - D(G(z, y), y)), averaged over the batch; 2 ln 2 when D only guesses.

    Logits float (N,) -> scalar. Binary cross-entropy with target 1 for real and 0 for generated.
    """
    real_loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake_loss = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return real_loss + fake_loss


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-log D(G(z, y), y), averaged over the batch; ln 2 when D only guesses.

    Logits float (N,) -> scalar. This is the non-saturating loss (Goodfellow et al. 2014, section
    3): its gradient is large exactly while D still rejects everything G makes.
    """
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def discriminator_step(
    state: TrainingState, images: Tensor, labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Update D once: real images towards 1, generated ones towards 0, each with its own label.

    images, fake float (N, C, H, W) in [-1, 1]; labels, fake_labels int64 (N,).
    Returns the loss and both logits (N,), detached.
    """
    both = torch.cat([images, fake.detach()])  # detach: this step must not teach G
    logits = state.discriminator(both, torch.cat([labels, fake_labels]))
    real_logits, fake_logits = logits.split([len(images), len(fake)])
    loss = discriminator_loss(real_logits, fake_logits)
    state.discriminator_optimizer.zero_grad()
    loss.backward()
    state.discriminator_optimizer.step()
    return loss.detach(), real_logits.detach(), fake_logits.detach()


def generator_step(state: TrainingState, fake: Tensor, fake_labels: Tensor) -> Tensor:
    """Update G once: make D call its images real. D passes the gradient on and is not updated.

    fake float (N, C, H, W), made by G with its graph; fake_labels int64 (N,) it was made for.
    Returns the loss, detached.
    """
    loss = generator_loss(state.discriminator(fake, fake_labels))
    state.generator_optimizer.zero_grad()
    loss.backward(inputs=list(state.generator.parameters()))
    state.generator_optimizer.step()
    return loss.detach()


def training_step(
    state: TrainingState, images: Tensor, labels: Tensor, z: Tensor, fake_labels: Tensor
) -> Tensor:
    """Update D once, then G once, on one batch; the generated images serve both.

    images float (N, C, H, W) in [-1, 1]; z float (N, latent_dim); labels, fake_labels int64 (N,).
    Returns float (4,): loss_d, loss_g, mean D(x), mean D(G(z)), on the device, without waiting.
    """
    fake = state.generator(z, fake_labels)
    loss_d, real_logits, fake_logits = discriminator_step(state, images, labels, fake, fake_labels)
    loss_g = generator_step(state, fake, fake_labels)
    return torch.stack([loss_d, loss_g, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()])


def sample_batch(
    state: TrainingState, data: LabelledImages, batch: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what one training step needs: the images at `batch`, and noise with labels.

    batch: indices int64 (N,). Returns images float (N, C, H, W) in [-1, 1], labels int64 (N,),
    z float (N, latent_dim) and fake_labels int64 (N,).
    """
    config, count = state.config, len(batch)  # the last batch of an epoch may be short
    z = torch.randn(count, config.latent_dim, generator=state.rng, device=state.device)
    fake_labels = torch.randint(
        config.num_classes, (count,), generator=state.rng, device=state.device
    )
    return normalize(data.images[batch]), data.labels[batch], z, fake_labels


def train_epoch(
    state: TrainingState, data: LabelledImages, batches: list[Tensor], step: Callable
) -> None:
    """Train on each batch in turn, a tensor of indices, and record the statistics of each step.

    step(state, data, batch) makes one `training_step` on what `sample_batch` returns. Its result
    is written to state.stats, float (steps of an epoch, 4).
    """
    for batch in batches:
        state.stats[state.step % len(state.stats)] = step(state, data, batch)
        state.step += 1


@functools.singledispatch
def recipe_of(config: CGANConfig) -> tuple[Callable, Callable, Callable | None]:
    """Return what a configuration trains with: `sample_batch`, `training_step` and a schedule.

    The schedule is called before each step with the state and the number of steps of the whole run,
    or is None. An add-on registers its own three for its own kind of configuration.
    """
    return sample_batch, training_step, None


@default_modes()
def train(
    config: CGANConfig,
    data: LabelledImages,
    device: str | torch.device = "auto",
    engine: str = "auto",
    seed: int = 0,
    *,
    step: Callable | None = None,
    max_steps: int | None = None,
    callback: Callable | None = None,
    resume_from: str | os.PathLike | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> TrainingState:
    """Train a conditional GAN and return its `TrainingState`.

    The result has .generator, .generator_ema (None without a moving average), .discriminator,
    .history (one mean per epoch and statistic: loss_d, loss_g, d_real = mean D(x), d_fake = mean
    D(G(z))), .config and .engine. On one machine's CPU the same seed gives the same bits.

    data: `LabelledImages`, kept whole on the device as uint8 and normalised batch by batch.
    device: "auto" (CUDA if there is one, else CPU) or a torch device.
    engine: what runs the step; the results agree to the last digits of a float. "eager": PyTorch,
        one operation after the other; "graph": a CUDA graph; "compiled": one C program on a CPU, on
        a GPU a CUDA graph of what torch.compile makes; "auto": "eager" for a short run or a step
        of your own, else "compiled" on a CPU and "graph" on a GPU. The one that ran is printed,
        and kept as state.engine.
    step: a function of your own in place of the recipe's, called like `training_step`.
    max_steps: stop once this many updates of each network were made in all.
    callback: called with the state after each epoch. It is one state, which training goes on to
        change: `copy.deepcopy(state.generator)` keeps a generator.
    resume_from: a checkpoint to go on from; its config must equal `config`, except for epochs.
    checkpoint_folder: where to save a checkpoint after each epoch; the last two are kept. It may
        have checkpoints already only if `resume_from` is one of them.
    progress: a progress bar and one printed line per epoch.
    Of epochs of fewer than 20 steps, at most 40 are printed and saved, evenly spaced, and the last.

    Networks are in train mode while they train; the result and a callback have them in eval mode.
    The caller's autocast, inference_mode, no_grad and default dtype do not apply.

    Interrupting (Ctrl-C, or the notebook's stop button) returns what was trained so far, once the
    step or callback under way is done; a second time raises KeyboardInterrupt at once. An error of
    a callback, or of the disk where a checkpoint is saved, has the state so far as its `.state`.
    Raises TypeError or ValueError for an argument it cannot train with (FileNotFoundError for a
    checkpoint that is not there), before any work is done, and FloatingPointError, naming the step,
    when a loss is no longer finite. Warns of classes without images and, after a whole run of the
    recipe's own step, of what went wrong with it: classes that do not depend on z, a D that rejects
    everything. Prints a hint if the run is short.
    """
    device = choose_device(device)
    _check_arguments(config, data, engine, seed, step, max_steps, callback, resume_from)
    if resume_from is None:
        state = TrainingState.create(config, seed, device)
    else:
        state = _resume(resume_from, config, seed, device)
    data = dataclasses.replace(data, images=data.images.to(device), labels=data.labels.to(device))
    epoch_steps = steps_per_epoch(config, data)
    if state.epoch != state.step // epoch_steps:
        raise ValueError(
            f"resume_from: {resume_from} was trained on another number of images or processes: "
            f"{state.step} steps are {state.epoch} epochs there, here one has {epoch_steps} steps"
        )
    total_steps = config.epochs * epoch_steps
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)
    if progress and step is None and max_steps is None and total_steps < config.min_steps / 2:
        tqdm.write(
            f"hint: {config.epochs} epochs of {len(data)} images are only {total_steps} steps; "
            "config.for_data(data) has enough epochs"
        )

    recipe_sample, recipe_step, set_schedule = recipe_of(config)
    if set_schedule is not None:
        set_schedule = functools.partial(set_schedule, total_steps=total_steps)
    if step is not None and engine == "auto":
        engine = "eager"  # it may do something else each time; the others record it once
    run_step = make_engine(
        engine, device, last_step, recipe_sample, step or recipe_step, set_schedule
    )

    with (
        claimed_folder(checkpoint_folder, resume_from),
        progress_bar(
            initial=state.step, total=last_step, unit="step", mininterval=1, progress=progress
        ) as bar,
        deferred_interrupts() as interrupts,
        contextlib.suppress(_Interrupted),
    ):

        def run_next_step(state, data, batch):
            if interrupts:
                raise _Interrupted
            if set_schedule is not None:
                set_schedule(state)
            stats = run_step(state, data, batch)
            state.engine = run_step.name
            bar.update(state.step + 1 - bar.n)  # an engine may have made several
            return stats

        while state.step < last_step:
            epoch, done = divmod(state.step, epoch_steps)
            if done == 0:
                state.stats = torch.zeros(epoch_steps, len(STATS), device=device)
            until = min(last_step - epoch * epoch_steps, epoch_steps)
            batches = run_step.grouped(state, _batches(state, data, epoch)[done:until])
            with _train_mode(state):
                train_epoch(state, data, batches, run_next_step)
            _check_finite(state, done, until, checkpoint_folder)
            if until == epoch_steps:
                _close_epoch(state)
                with _carried_by_errors(state):
                    _report_epoch(state, checkpoint_folder, progress)
                    if callback is not None:
                        callback(state)
    if progress and state.engine is not None:
        tqdm.write(f"engine: {state.engine}")
    if interrupts:
        tqdm.write(f"interrupted after step {state.step}; what was trained so far is returned")
    elif step is None and state.step == total_steps >= ENOUGH_TO_JUDGE:
        warn_of_trouble(state, data, epoch_steps)
    return state


def steps_per_epoch(config, data):
    return math.ceil(len(data) // process_count() / config.batch_size)


class _Interrupted(Exception):
    """Raised before a step, never within one: half a step cannot be resumed."""


def _batches(state, data, epoch):
    """The indices of an epoch's batches, shuffled anew for each epoch."""
    order = state.shuffled(len(data), epoch)
    order = order[: len(data) // process_count() * process_count()]  # equal shares
    return order.split(state.config.batch_size * process_count())


@contextlib.contextmanager
def _train_mode(state):
    """Train mode within; outside, whoever is given the state samples in eval mode."""
    networks = state.generator, state.discriminator
    try:
        for network in networks:
            network.train()
        yield
    finally:
        for network in networks:
            network.eval()


@contextlib.contextmanager
def _carried_by_errors(state):
    """Let an error between two epochs, of the disk or a callback, carry what was trained so far."""
    try:
        yield
    except Exception as error:
        error.state = state
        error.add_note(f"The error's .state holds what was trained so far: {state.step} steps.")
        raise


def _close_epoch(state):
    for name, mean in zip(STATS, state.stats.mean(dim=0).tolist(), strict=True):
        state.history.setdefault(name, []).append(mean)


def _report_epoch(state, checkpoint_folder, progress):
    """Print the means of the epoch just closed and save a checkpoint, if it is this one's turn."""
    short = len(state.stats) < SHORT_EPOCH
    every = math.ceil(state.config.epochs / MOST_REPORTS) if short else 1
    if state.epoch % every != 0 and state.epoch != state.config.epochs:
        return
    if progress:
        means = {name: means[-1] for name, means in state.history.items()}
        tqdm.write(
            "epoch {:2d}/{}  loss_D {loss_d:.3f}  loss_G {loss_g:.3f}  "
            "D(x) {d_real:.3f}  D(G(z)) {d_fake:.3f}".format(
                state.epoch, state.config.epochs, **means
            )
        )
    if checkpoint_folder is not None:
        save_checkpoint(checkpoint_path(checkpoint_folder, state), state, keep_last=2)


def _check_finite(state, first, last, checkpoint_folder):
    bad = ~state.stats[first:last].isfinite().all(dim=1)
    if bad.any():
        row = first + bad.int().argmax().item()
        step = state.step - last + row + 1
        values = dict(zip(STATS, state.stats[row].tolist(), strict=True))
        kept = checkpoint_folder and latest_checkpoint(checkpoint_folder)
        raise FloatingPointError(
            f"training left the finite numbers at step {step}: {values}; "
            f"last good checkpoint: {kept or 'none was saved'}"
        )


def _check_arguments(config, data, engine, seed, step, max_steps, callback, resume_from):
    check_type("config", config, CGANConfig)
    check_type("data", data, LabelledImages)
    for name, expected, found in (
        ("image_shape", config.image_shape, tuple(data.images.shape[1:])),
        ("classes", config.classes, tuple(data.classes)),
    ):
        if expected != found:
            raise ValueError(
                f"data has {name} {found}, config has {expected}; train with config.for_data(data)"
            )
    share = len(data) // process_count()
    if share == 0:
        raise ValueError(
            f"data must have an image for each of the {process_count()} processes; got {len(data)}"
        )
    smallest = min(config.batch_size, share % config.batch_size or config.batch_size)
    if smallest < config.min_batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} makes a batch of {smallest} of the {share} images; "
            f"this recipe needs at least {config.min_batch_size} in each: choose another"
        )
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    check_count("seed", seed, minimum=0)
    if max_steps is not None:
        check_count("max_steps", max_steps)
    for name, function in (("step", step), ("callback", callback)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable; got {function!r}")
    if resume_from is not None:
        check_type("resume_from", resume_from, str, os.PathLike)
    empty = empty_classes(data.labels.tolist(), data.classes)
    if empty:
        warnings.warn(
            f"data has no image of {', '.join(empty)}: G cannot learn to generate them; "
            "`data.subset` keeps the classes you name",
            stacklevel=4,
        )


def _resume(path, config, seed, device):
    try:
        state = load_checkpoint(path, device)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"resume_from{str(error).removeprefix('path')}") from error
    trained, asked = (
        {**fields, "seed": number}
        for fields, number in ((state.config.to_dict(), state.seed), (config.to_dict(), seed))
    )
    other = [name for name in trained if trained[name] != asked.get(name) and name != "epochs"]
    if other:
        other = ["recipe"] if "recipe" in other else other  # which all other fields depend on
        was, got = (
            ", ".join(f"{name} {fields[name]}" for name in other) for fields in (trained, asked)
        )
        raise ValueError(f"resume_from: {path} was trained with {was}; got {got}")
    state.config = config
    return state

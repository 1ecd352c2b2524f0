"""The two losses, the training step and the loop around it.

Goodfellow et al. 2014 (arXiv 1406.2661), equation 1 and algorithm 1, with a label given to both
networks as in Mirza & Osindero 2014 (arXiv 1411.1784), equation 2.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .checkpoints import (
    ORDER,
    PENALTY_EVERY,
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_rolling,
)
from .config import (
    MEASURES,
    CGANConfig,
    check_count,
    check_range,
    check_tensor,
    check_type,
    choose_device,
    make_writable,
    random_stream,
)
from .data import LabelledImages, normalize
from .engines import ENGINES, make_engine, processes
from .models import label_range, pick


def discriminator_loss(real_logits, fake_logits):
    """-log D(x, y) - log(1 - D(G(z, y), y)), averaged over the batch; 2 ln 2 when D only guesses.

    Logits float (N,) -> scalar. Binary cross-entropy with target 1 for real and 0 for generated.
    """
    check_tensor("real_logits", real_logits, "float", "N")
    check_tensor("fake_logits", fake_logits, "float", "N")
    real_loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake_loss = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return real_loss + fake_loss


def generator_loss(fake_logits):
    """-log D(G(z, y), y), averaged over the batch; ln 2 when D only guesses.

    Logits float (N,) -> scalar. This is the non-saturating loss (Goodfellow et al. 2014, section
    3): its gradient is large exactly while D still rejects everything G makes.
    """
    check_tensor("fake_logits", fake_logits, "float", "N")
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def gradient_penalty(real_logits, images):
    """R1: the squared length of D's gradient at real images, averaged over the batch.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9, without gamma / 2. A steep D lets G run
    past the real images; a flat one lets it come to rest there. Logits (N,), computed from images
    (N, C, H, W) that require a gradient -> scalar, itself differentiable.
    """
    _check_slope(real_logits, images)
    total = real_logits.sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError("real_logits must be computed from images; they do not depend on them")
    return gradient.square().flatten(1).sum(dim=1).mean()


def mismatch_loss(logits, labels):
    """-log(1 - D(x, y')), averaged over real images x and all labels y' that are not theirs.

    A picture that looks real is no excuse for a wrong label: Reed et al. 2016 (arXiv 1605.05396),
    section 4.2, who draw one wrong label for each. Logits (N, num_classes), of each image with
    every label, and its own labels int64 (N,) -> scalar; ln 2 when D only guesses.
    """
    check_tensor("logits", logits, "float", "N", "num_classes")
    check_count("num_classes of logits", logits.shape[1], minimum=2)
    check_tensor("labels", labels, torch.int64, len(logits))
    with label_range(labels, logits.shape[1]):
        wrong = torch.ones_like(logits).scatter(1, labels.unsqueeze(1), 0)
    rejected = F.binary_cross_entropy_with_logits(
        logits, torch.zeros_like(logits), weight=wrong, reduction="sum"
    )
    return rejected / (logits.numel() - len(logits))


def discriminator_step(state, images, labels, fake, fake_labels):
    """Update D once: real images towards 1, generated ones towards 0, each with its own label.

    images, fake float (N, C, H, W) in [-1, 1]; labels, fake_labels int64 (N,).
    Returns the loss (without what a recipe adds to it) and both logits (N,), detached.
    """
    _check_batch(state, images=images, labels=labels, fake=fake, fake_labels=fake_labels)
    config, extra = state.config, 0
    images = images.detach().requires_grad_(state.penalized)
    both = torch.cat([images, fake.detach()])  # this step must not teach G
    both_labels = torch.cat([labels, fake_labels])
    if config.mismatch_weight > 0:
        every_label = state.discriminator(both)
        logits = pick(every_label, both_labels)
        extra += config.mismatch_weight * mismatch_loss(every_label[: len(images)], labels)
    else:
        logits = state.discriminator(both, both_labels)
    real_logits, fake_logits = logits.split([len(images), len(fake)])
    loss = discriminator_loss(real_logits, fake_logits)
    if state.penalized:  # seldom, and then with so much more weight
        (group,) = state.discriminator_optimizer.param_groups
        # Later, in smaller steps, D may be steeper: as in Huang et al. 2024 (arXiv 2501.05441).
        gamma = config.gradient_penalty * (0.1 + 0.9 * group["lr"] / config.learning_rate)
        extra += PENALTY_EVERY * gamma / 2 * gradient_penalty(real_logits, images)
    state.discriminator_optimizer.zero_grad()
    (loss + extra).backward()
    state.discriminator_optimizer.step()
    return loss.detach(), real_logits.detach(), fake_logits.detach()


def generator_step(state, fake, fake_labels):
    """Update G once: make D call its images real. D passes the gradient on but stays as it is.

    fake float (N, C, H, W), made by G with its graph; fake_labels int64 (N,) it was made for.
    Returns the loss, detached.
    """
    _check_batch(state, fake=fake, fake_labels=fake_labels)
    loss = generator_loss(state.discriminator(fake, fake_labels))
    state.generator_optimizer.zero_grad()
    loss.backward(inputs=list(state.live_generator.parameters()))
    state.generator_optimizer.step()
    return loss.detach()


@torch.no_grad()
def update_average(state):
    """Move the generator to sample from towards the live one, which jumps about.

    An exponential moving average of weights and batch statistics: Yazici et al. 2019 (arXiv
    1806.04498), section 3.
    """
    _check_batch(state)
    average, live = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (state.generator, state.live_generator)
    )
    for mean, value in zip(average, live, strict=True):
        mean.lerp_(value, state.average_weight)


def training_step(state, images, labels, z, fake_labels):
    """One update of D, then one of G, on one batch; G's images serve both. Then its average.

    images float (N, C, H, W) in [-1, 1]; z float (N, latent_dim); labels, fake_labels int64 (N,).
    Returns float (4,): loss_d, loss_g, mean D(x), mean D(G(z)), on the device, without waiting.
    """
    _check_batch(state, images=images, labels=labels, z=z, fake_labels=fake_labels)
    fake = state.live_generator(z, fake_labels)
    loss_d, real_logits, fake_logits = discriminator_step(state, images, labels, fake, fake_labels)
    loss_g = generator_step(state, fake, fake_labels)
    if state.config.ema_decay > 0:
        update_average(state)
    return torch.stack([loss_d, loss_g, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()])


def draw_batch(state, data, batch):
    """What one training step needs: the images at `batch` (indices int64), and noise with labels.

    Returns images float (N, C, H, W) in [-1, 1], labels, z (N, latent_dim) and fake_labels.
    """
    _check_indices("batch", batch, state, data)
    config = state.config
    count = len(batch)  # the last batch may be short
    z = torch.randn(count, config.latent_dim, generator=state.noise, device=state.device)
    fake_labels = torch.randint(
        config.num_classes, (count,), generator=state.noise, device=state.device
    )
    images = normalize(data.images[batch])
    return images, data.labels[batch], z, fake_labels


def train_epoch(state, data, order, bar, engine):
    """Train on the images in `order` (indices int64, in what is left of this epoch).

    engine(state, data, batch): runs `training_step` on what `draw_batch` gives. What it returns
    goes to state.measures, float (steps of an epoch, 4). bar: told of each step by bar.update().
    """
    _check_indices("order", order, state, data)
    check_tensor("state.measures", state.measures, "float", "steps", len(MEASURES))
    total_steps = state.config.epochs * steps_per_epoch(state.config, data)
    for batch in order.split(state.config.batch_size * processes()):
        set_learning_rate(state, total_steps)
        position = state.step % len(state.measures)
        state.measures[position] = engine(state, data, batch)
        state.step += 1
        bar.update()


def steps_per_epoch(config, data):
    return math.ceil(len(data) // processes() / config.batch_size)


def set_learning_rate(state, total_steps):
    """Adam's learning rate for the next step, the same for both networks."""
    config = state.config
    left = 1 - state.step / total_steps if config.learning_rate_decay else 1
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * left


def train(
    config,
    data,
    device="auto",
    engine="auto",
    seed=0,
    *,
    step=None,
    max_steps=None,
    callback=None,
    resume_from=None,
    checkpoint_folder=None,
    progress=True,
):
    """Train a conditional GAN and return its `TrainingState`.

    The result has .generator, .discriminator, .history (one mean per epoch and measure: loss_d,
    loss_g, d_real = mean D(x), d_fake = mean D(G(z))) and .config. On one machine's CPU the same
    seed gives the same bits.

    data: `LabelledImages`, kept whole on the device as uint8 and normalised batch by batch.
    device: "auto" (CUDA if there is one, else CPU) or a torch device.
    engine: how the step is run; the results agree to the last digits. "eager": as it stands;
        "compiled": as one C program, on the CPU; "graph": as a CUDA graph; "auto": the fastest
        for this device and length of run, and "eager" for a step of your own.
    step: what to do with each batch: `training_step`, or a function of your own in its place.
    max_steps: stop once this many updates of each network were made in all.
    callback: called with the state after each epoch.
    resume_from: a checkpoint to go on from; its config must equal `config`, except for epochs.
    checkpoint_folder: where to save a checkpoint after each epoch; the last two are kept.
    progress: a progress bar and one printed line per epoch.

    Interrupting (Ctrl-C, or the notebook's stop button) returns what was trained so far, once the
    step or callback under way is done; a second time raises KeyboardInterrupt at once.
    Raises TypeError or ValueError for an argument it cannot train with (FileNotFoundError for a
    checkpoint that is not there), before any work is done, and FloatingPointError, naming the step,
    when a loss is no longer finite.
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
    last_step = config.epochs * epoch_steps
    if max_steps is not None:
        last_step = min(last_step, max_steps)

    if step is not None and engine == "auto":
        engine = "eager"  # it may do something else each time; the others record it once
    run_step = make_engine(engine, device, last_step, draw_batch, step or training_step)
    batch_size = config.batch_size * processes()
    if checkpoint_folder is not None:
        _check_folder(checkpoint_folder)

    with (
        _progress_bar(state.step, last_step, progress) as bar,
        _noted_interrupts() as interrupts,
        contextlib.suppress(_Interrupted),
    ):

        def run_next_step(*arguments):
            if interrupts:
                raise _Interrupted
            return run_step(*arguments)

        while state.step < last_step:
            epoch, done = divmod(state.step, epoch_steps)
            if done == 0:
                state.measures = torch.zeros(epoch_steps, len(MEASURES), device=device)
            order = torch.randperm(len(data), generator=random_stream(state.seed, ORDER, epoch))
            until = min(last_step - epoch * epoch_steps, epoch_steps)
            order = order[: len(data) // processes() * processes()]  # equal shares
            left = order[done * batch_size : until * batch_size]
            train_epoch(state, data, left.to(device), bar, run_next_step)
            _check_finite(state, done, until, checkpoint_folder)
            if until == epoch_steps:
                _close_epoch(state, bar)
                if checkpoint_folder is not None:
                    save_rolling(checkpoint_folder, state)
                if callback is not None:
                    callback(state)
    if interrupts:
        tqdm.write(f"interrupted after step {state.step}; what was trained so far is returned")
    return state


class _Interrupted(Exception):
    """Before a step, never within one: half a step cannot be resumed."""


@contextlib.contextmanager
def _noted_interrupts():
    """Gives a list to which a Ctrl-C is added; a second one raises KeyboardInterrupt.

    A program's own way with Ctrl-C is left alone.
    """
    noted = []

    def note(number, _):
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # others get no signals
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _progress_bar(done, total, progress):
    # on stdout: a notebook shows stderr as an alarm; and gone at the end, leaving the epoch lines
    return tqdm(
        initial=done,
        total=total,
        unit="step",
        disable=not progress,
        file=sys.stdout,
        leave=False,
        mininterval=1,
    )


def _close_epoch(state, bar):
    means = dict(zip(MEASURES, state.measures.mean(dim=0).tolist(), strict=True))
    for name, mean in means.items():
        state.history.setdefault(name, []).append(mean)
    if not bar.disable:
        tqdm.write(
            "epoch {:2d}/{}  loss_D {loss_d:.3f}  loss_G {loss_g:.3f}  "
            "D(x) {d_real:.3f}  D(G(z)) {d_fake:.3f}".format(
                state.epoch, state.config.epochs, **means
            )
        )


def _check_finite(state, first, last, checkpoint_folder):
    bad = ~state.measures[first:last].isfinite().all(dim=1)
    if bad.any():
        row = first + bad.int().argmax().item()
        step = state.step - last + row + 1
        values = dict(zip(MEASURES, state.measures[row].tolist(), strict=True))
        kept = checkpoint_folder and newest_checkpoint(checkpoint_folder)
        raise FloatingPointError(
            f"training left the finite numbers at step {step}: {values}; "
            f"last good checkpoint: {kept or 'none was saved'}"
        )


def _check_batch(state, **tensors):
    """Raise unless a step can be made of them. Their names say what they must be.

    There must be a label for each row of the tensor before the labels.
    """
    check_type("state", state, TrainingState, types.SimpleNamespace)  # or an engine's stand-in
    count, dtype = "N", state.generator.embedding.weight.dtype
    for name, tensor in tensors.items():
        if name.endswith("labels"):
            check_tensor(name, tensor, torch.int64, count)
            if isinstance(state, TrainingState):  # a stand-in's step may be recorded: no values
                _check_range_on_cpu(name, tensor, state.config.num_classes)
        else:
            row = (state.config.latent_dim,) if name == "z" else state.config.image_shape
            check_tensor(name, tensor, dtype, "N", *row)
            count = len(tensor)


def _check_slope(real_logits, images):
    check_tensor("real_logits", real_logits, "float", "N")
    check_type("images", images, torch.Tensor)
    if not (images.requires_grad and real_logits.requires_grad):
        raise ValueError("images must require a gradient, and real_logits be computed from them")


def _check_indices(name, indices, state, data):
    """Raise unless a batch can be drawn from the data at these indices."""
    _check_batch(state)
    check_type("data", data, LabelledImages)
    check_tensor(name, indices, torch.int64, "N")
    _check_range_on_cpu(name, indices, len(data))


def _check_range_on_cpu(name, indices, count):
    if indices.device.type == "cpu":  # a GPU would have to be waited for, and checks this itself
        check_range(name, indices, count)


def _check_arguments(config, data, engine, seed, step, max_steps, callback, resume_from):
    check_type("config", config, CGANConfig)
    check_type("data", data, LabelledImages)
    for name, expected, found in (
        ("image_shape", config.image_shape, tuple(data.images.shape[1:])),
        ("classes", config.classes, tuple(data.classes)),
    ):
        if expected != found:
            raise ValueError(
                f"data has {name} {found}, config has {expected}; train with "
                f"config.replace({name}={found})"
            )
    share = len(data) // processes()
    if share == 0:
        raise ValueError(
            f"data must have an image for each of the {processes()} processes; got {len(data)}"
        )
    if config.conditional_norm and 1 in (config.batch_size, share % config.batch_size):
        raise ValueError(
            f"batch_size {config.batch_size} leaves a last batch of one of the {share} images, "
            "which batch norm cannot train on; choose another"
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


def _check_folder(checkpoint_folder):
    """Raise unless files can be written there; it is made if it is not there yet."""
    check_type("checkpoint_folder", checkpoint_folder, str, os.PathLike)
    try:
        make_writable(Path(checkpoint_folder))
    except OSError as error:
        raise ValueError(
            "checkpoint_folder must be one that can be written to; "
            f"got {checkpoint_folder} ({error})"
        ) from error


def _resume(path, config, seed, device):
    try:
        state = load_checkpoint(path, device)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"resume_from{str(error).removeprefix('path')}") from error
    if state.config.replace(epochs=config.epochs) != config:
        raise ValueError(f"resume_from: {path} was trained with {state.config}; got {config}")
    if state.seed != seed:
        raise ValueError(f"resume_from: {path} was trained with seed {state.seed}; got {seed}")
    state.config = config
    return state

"""The classic silent bugs of GAN training, each looked for; and the loop's promises."""

import contextlib
import copy
import functools
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import cgan_utils as cg
from cgan_utils import training
from cgan_utils.checkpoints import latest_checkpoint


@pytest.fixture
def state(tiny_config):
    return cg.TrainingState.create(tiny_config, seed=0)


def quiet_train(*args, **kwargs):
    return cg.train(*args, progress=False, device="cpu", **kwargs)


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same_bits(state, expected):
    assert state.step == expected.step and state.history == expected.history
    for network in ("generator", "discriminator"):
        ours, theirs = (getattr(s, network).state_dict().values() for s in (state, expected))
        assert equal(ours, theirs)


# -- the losses


def test_losses_on_two_examples_by_hand():
    real, fake = torch.tensor([0.3, -1.2]), torch.tensor([2.0, -0.7])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    on_real = -(math.log(sigmoid(0.3)) + math.log(sigmoid(-1.2))) / 2
    on_fake = -(math.log(1 - sigmoid(2.0)) + math.log(1 - sigmoid(-0.7))) / 2
    assert cg.discriminator_loss(real, fake).item() == pytest.approx(on_real + on_fake, rel=1e-6)
    non_saturating = -(math.log(sigmoid(2.0)) + math.log(sigmoid(-0.7))) / 2
    assert cg.generator_loss(fake).item() == pytest.approx(non_saturating, rel=1e-6)


def test_losses_of_a_guessing_discriminator():
    zeros = torch.zeros(7)
    assert cg.discriminator_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))
    assert cg.generator_loss(zeros).item() == pytest.approx(math.log(2))


def test_losses_equal_the_posts_sigmoid_and_bceloss():
    logits = torch.linspace(-6, 6, 25, requires_grad=True)
    post = nn.BCELoss()(logits.sigmoid(), torch.ones(25))
    (post_gradient,) = torch.autograd.grad(post, logits)
    (gradient,) = torch.autograd.grad(cg.generator_loss(logits), logits)
    torch.testing.assert_close(cg.generator_loss(logits), post)
    torch.testing.assert_close(gradient, post_gradient)


@pytest.mark.parametrize("value", [-1e3, 1e3])
def test_losses_and_gradients_stay_finite_at_sure_logits(value):
    logits = torch.full((2,), value, requires_grad=True)
    for loss in (cg.generator_loss(logits), cg.discriminator_loss(logits, -logits)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
    assert cg.generator_loss(torch.full((2,), -1e3)).item() == 1e3


# -- one step


def test_discriminator_step_teaches_only_the_discriminator(state, batch):
    images, labels, z, fake_labels = batch
    before = weights(state.generator), weights(state.discriminator)
    fake = state.generator(z, fake_labels)
    cg.discriminator_step(state, images, labels, fake, fake_labels)
    assert all(p.grad is None for p in state.generator.parameters())
    assert equal(before[0], weights(state.generator))
    assert not equal(before[1], weights(state.discriminator))


def test_generator_step_teaches_only_the_generator(state, batch):
    _, _, z, fake_labels = batch
    before = weights(state.generator), weights(state.discriminator)
    cg.generator_step(state, state.generator(z, fake_labels), fake_labels)
    assert all(p.grad is None for p in state.discriminator.parameters())
    assert equal(before[1], weights(state.discriminator))
    assert not equal(before[0], weights(state.generator))


def test_training_step_equals_the_algorithm_written_out(state, batch):
    """Against plain SGD-style code of its own: two graphs, unfused Adam, BCELoss on sigmoids."""
    images, labels, z, fake_labels = batch
    g, d = copy.deepcopy(state.generator), copy.deepcopy(state.discriminator)
    opt_g = torch.optim.Adam(g.parameters(), lr=2e-4)
    opt_d = torch.optim.Adam(d.parameters(), lr=2e-4)
    bce, one, zero = nn.BCELoss(), torch.ones(16), torch.zeros(16)
    for _ in range(3):
        p_real = d(images, labels).sigmoid()
        with torch.no_grad():
            fake = g(z, fake_labels)
        p_fake = d(fake, fake_labels).sigmoid()
        loss_d = bce(p_real, one) + bce(p_fake, zero)
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        loss_g = bce(d(g(z, fake_labels), fake_labels).sigmoid(), one)
        opt_g.zero_grad()
        loss_g.backward()
        opt_g.step()
        measured = cg.training_step(state, *batch)
        expected = torch.stack([loss_d, loss_g, p_real.mean(), p_fake.mean()])
        torch.testing.assert_close(measured, expected.detach(), atol=1e-6, rtol=1e-5)
    for ours, plain in ((state.generator, g), (state.discriminator, d)):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_real_and_generated_images_need_not_be_equally_many(state, batch):
    images, labels, z, fake_labels = batch
    fake = state.generator(z, fake_labels)[:2]
    real_logits, fake_logits = (
        state.discriminator(x, y).detach() for x, y in ((images, labels), (fake, fake_labels[:2]))
    )
    loss, *logits = cg.discriminator_step(state, images, labels, fake, fake_labels[:2])
    torch.testing.assert_close(logits, [real_logits, fake_logits])
    torch.testing.assert_close(loss, cg.discriminator_loss(real_logits, fake_logits))


def test_discriminator_is_given_the_label_the_generator_was_given(state, batch):
    seen = {"g": [], "d": []}
    state.generator.register_forward_pre_hook(lambda _, args: seen["g"].append(args[1]))
    state.discriminator.register_forward_pre_hook(lambda _, args: seen["d"].append(args[1]))
    cg.training_step(state, *batch)
    _, labels, _, fake_labels = batch
    assert [torch.equal(y, fake_labels) for y in seen["g"]] == [True]
    both = torch.cat([labels, fake_labels])  # real and generated images
    assert equal(seen["d"], [both, fake_labels])  # then the generated ones again, for G


# -- the loop


@pytest.fixture
def spy(monkeypatch):
    """Records the arguments of each training step that `train` makes."""
    calls, step = [], training.training_step

    def recording(state, *batch):
        calls.append([tensor.clone() for tensor in batch])
        return step(state, *batch)

    monkeypatch.setattr(training, "training_step", recording)
    return calls


def test_each_epoch_shows_every_image_once_with_its_label(spy, tiny_config, tiny_data):
    quiet_train(tiny_config, tiny_data)
    for parts in zip(*spy, strict=True):  # images, labels, z and fake labels
        assert [len(part) for part in parts] == [16, 16, 16, 6] * 2  # the short batch trains too
    expected = {
        tuple(image.tolist()): label.item()
        for image, label in zip(
            cg.normalize(tiny_data.images).flatten(1), tiny_data.labels, strict=True
        )
    }
    orders = []
    for epoch in (spy[:4], spy[4:]):
        images = torch.cat([images for images, *_ in epoch]).flatten(1)
        labels = torch.cat([labels for _, labels, *_ in epoch])
        shown = [tuple(image.tolist()) for image in images]
        assert len(set(shown)) == 54
        assert [expected[image] for image in shown] == labels.tolist()
        orders.append(shown)
    assert orders[0] != orders[1]  # shuffled anew


def test_another_seed_shuffles_and_draws_otherwise(spy, tiny_config, tiny_data):
    for seed in (0, 1):
        quiet_train(tiny_config, tiny_data, seed=seed, max_steps=1)
    (images, _, z, _), (other_images, _, other_z, _) = spy
    assert not torch.equal(images, other_images) and not torch.equal(z, other_z)


def test_real_and_generated_images_share_their_range(spy, tiny_config, tiny_data):
    state = quiet_train(tiny_config, tiny_data)
    real = torch.cat([images for images, *_ in spy])
    assert (real.min(), real.max()) == (-1, 1)
    for parameter in state.generator.parameters():
        parameter.data *= 50
    fake = cg.sample(state.generator, [0, 1, 2] * 50)
    assert fake.min() >= -1 and fake.max() <= 1 and fake.max() - fake.min() > 1.9


def test_every_class_is_asked_of_the_generator_equally_often(spy, tiny_config, tiny_data):
    quiet_train(tiny_config.replace(epochs=50), tiny_data)
    asked = torch.cat([fake_labels for *_, fake_labels in spy]).bincount(minlength=3)
    expected = asked.sum() / 3
    chi_squared = ((asked - expected) ** 2 / expected).sum()
    assert chi_squared < 13.8  # 2 degrees of freedom: 1 in 1000 fair draws lies above


def test_noise_is_standard_normal_and_never_repeats(spy, tiny_config, tiny_data):
    quiet_train(tiny_config.replace(epochs=50), tiny_data)
    z = torch.cat([z for _, _, z, _ in spy])
    assert len(z.unique(dim=0)) == len(z)
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


def test_same_seed_same_bits_and_another_seed_others(tiny_config, tiny_data):
    first = quiet_train(tiny_config, tiny_data, seed=1)
    torch.rand(5)  # whatever ran before
    again = quiet_train(tiny_config, tiny_data, seed=1)
    other = quiet_train(tiny_config, tiny_data, seed=2)
    assert equal(weights(first.generator), weights(again.generator))
    assert equal(weights(first.discriminator), weights(again.discriminator))
    assert first.history == again.history
    assert not equal(weights(first.generator), weights(other.generator))


def test_training_leaves_the_global_random_numbers_alone(tiny_config, tiny_data):
    before = torch.get_rng_state()
    quiet_train(tiny_config, tiny_data)
    assert torch.equal(before, torch.get_rng_state())


def test_history_has_one_mean_per_epoch(spy, tiny_config, tiny_data, monkeypatch):
    steps, step = [], training.training_step
    monkeypatch.setattr(
        training, "training_step", lambda *args: steps.append(step(*args)) or steps[-1]
    )
    state = quiet_train(tiny_config, tiny_data)
    expected = torch.stack([torch.stack(steps[:4]).mean(0), torch.stack(steps[4:]).mean(0)])
    history = torch.tensor([state.history[name] for name in training.STATS]).T
    torch.testing.assert_close(history, expected)


def test_a_step_of_your_own_replaces_the_packages(spy, tiny_config, tiny_data):
    seen = []

    def step(state, images, labels, z, fake_labels):
        seen.append((images, labels, z, fake_labels))
        return torch.tensor([1.0, 2.0, 3.0, 4.0])

    state = quiet_train(tiny_config, tiny_data, step=step)
    assert spy == [] and state.history["loss_g"] == [2.0] * tiny_config.epochs
    quiet_train(tiny_config, tiny_data)
    assert all(equal(mine, packages) for mine, packages in zip(seen, spy, strict=True))


def test_callback_sees_each_epoch(tiny_config, tiny_data):
    seen = []
    quiet_train(tiny_config, tiny_data, callback=lambda s: seen.append((s.epoch, s.step)))
    assert seen == [(1, 4), (2, 8)]


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_resuming_equals_the_uninterrupted_run(stop, tiny_config, tiny_data, tmp_path):
    whole = quiet_train(tiny_config, tiny_data)
    part = quiet_train(tiny_config, tiny_data, max_steps=stop)
    assert part.step == stop
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    assert_same_bits(quiet_train(tiny_config, tiny_data, resume_from=path), whole)


@pytest.fixture
def ctrl_c():
    """As a terminal has it, and how to press it: in a job in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield functools.partial(signal.raise_signal, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_interrupting_keeps_what_was_trained(tiny_config, tiny_data, monkeypatch, capsys, ctrl_c):
    step, calls = training.training_step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            ctrl_c()
        return step(*args)

    monkeypatch.setattr(training, "training_step", interrupted)
    try:
        state = quiet_train(tiny_config, tiny_data)
    except KeyboardInterrupt:  # it would stop pytest
        pytest.fail("the interrupt was not deferred")
    assert (state.step, state.epoch) == (5, 1)
    assert "interrupted after step 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [("generator_step", 3, 3), ("generator_step", 8, 8), ("_check_finite", 1, 4)],
)
def test_an_interrupt_leaves_neither_step_nor_epoch_half_done(
    place, call, step, tiny_config, tiny_data, monkeypatch, tmp_path, capsys, ctrl_c
):
    """A real SIGINT in the middle of a step, of the last one, and after an epoch's last one."""
    whole = quiet_train(tiny_config, tiny_data)
    calls, function = itertools.count(1), getattr(training, place)

    def interrupted(*args):
        if next(calls) == call:
            ctrl_c()
        return function(*args)

    monkeypatch.setattr(training, place, interrupted)
    part = quiet_train(tiny_config, tiny_data)
    assert f"interrupted after step {step};" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (part.step, part.epoch) == (step, step // 4)
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    assert_same_bits(quiet_train(tiny_config, tiny_data, resume_from=path), whole)


def test_a_second_interrupt_does_not_wait(tiny_config, tiny_data, ctrl_c):
    def step(*_):
        ctrl_c()
        ctrl_c()
        raise AssertionError("it waited")

    with pytest.raises(KeyboardInterrupt):  # half a step is not returned as if it were whole
        quiet_train(tiny_config, tiny_data, step=step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_way_with_interrupts_is_left_alone(tiny_config, tiny_data, ctrl_c):
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append("an interrupt"))
    state = quiet_train(tiny_config, tiny_data, callback=lambda _: ctrl_c())
    assert state.step == 8 and len(seen) == 2


def test_training_in_another_thread(tiny_config, tiny_data, ctrl_c):
    with ThreadPoolExecutor() as pool:
        state = pool.submit(quiet_train, tiny_config, tiny_data).result()
    assert_same_bits(state, quiet_train(tiny_config, tiny_data))


def test_a_loss_that_is_not_finite_stops_with_the_step(
    tiny_config, tiny_data, monkeypatch, tmp_path
):
    step, calls = training.training_step, []

    def poisoned(*args):
        calls.append(args)
        stats = step(*args)
        return stats * math.nan if len(calls) == 7 else stats

    monkeypatch.setattr(training, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 7: .*nan.*checkpoint: none"):
        quiet_train(tiny_config, tiny_data)
    calls.clear()
    with pytest.raises(FloatingPointError, match=r"step 7: .*nan.*step-000000004\.pt"):
        quiet_train(tiny_config, tiny_data, checkpoint_folder=tmp_path)
    assert cg.load_checkpoint(latest_checkpoint(tmp_path)).step == 4


def test_checkpoints_that_cannot_be_loaded_do_not_hide_it(tiny_config, tiny_data, tmp_path):
    good = cg.save_checkpoint(
        tmp_path / "step-000000005.pt", quiet_train(tiny_config, tiny_data, max_steps=5)
    )
    (tmp_path / "step-000000009.pt").write_text("another version's")
    options = dict(step=lambda *_: torch.full((4,), math.nan), checkpoint_folder=tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 6: .*checkpoint: .*step-000000005\.pt"):
        quiet_train(tiny_config, tiny_data, resume_from=good, **options)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 3, 4)])
def test_training_obeys_its_labels_on_a_set_that_cannot_be_misread(shape):
    """Class k is one grey level: after training, the mean brightness must follow the label."""
    levels = torch.tensor([30, 120, 225], dtype=torch.uint8)
    labels = torch.arange(1500) % 3
    images = levels[labels][:, None, None, None].expand(-1, *shape).contiguous()
    data = cg.LabelledImages(images, labels, ("dark", "medium", "bright"))
    config = cg.CGANConfig(
        classes=data.classes, image_shape=shape, latent_dim=8, hidden_dim=64, epochs=20
    )
    state = quiet_train(config, data)
    means = cg.sample(state.generator, [0] * 50 + [1] * 50 + [2] * 50).view(3, -1).mean(dim=1)
    assert (means - (levels / 127.5 - 1)).abs().max() < 0.2


def test_progress_lines_go_to_stdout(tiny_config, tiny_data, capfd):
    cg.train(tiny_config, tiny_data, device="cpu")
    out, err = capfd.readouterr()
    assert "epoch  2/2" in out and "loss_D" in out and err == ""
    assert out.rstrip().endswith("engine: eager")  # so short a run


def test_a_short_run_is_told_of_for_data(tiny_config, tiny_data, capsys):
    """54 images in batches of 16 are 4 steps an epoch: 1,000 epochs make half of `min_steps`."""
    for options, hinted in (
        ({}, True),
        ({"max_steps": 3}, False),  # asked for
        ({"progress": False}, False),
    ):
        cg.train(tiny_config, tiny_data, "cpu", **options)
        assert ("only 8 steps; config.for_data(data)" in capsys.readouterr().out) == hinted


def test_of_many_epochs_forty_are_reported(tiny_config, tiny_data, tmp_path, capsys):
    def callback(state):
        steps.append([int(path.stem[-3:]) for path in sorted(tmp_path.glob("step-*.pt"))])

    steps = []
    config = tiny_config.replace(epochs=85, batch_size=54)  # one step an epoch
    cg.train(config, tiny_data, "cpu", checkpoint_folder=tmp_path, callback=callback)
    printed = re.findall(r"epoch +(\d+)/85", capsys.readouterr().out)
    assert list(map(int, printed)) == [*range(3, 85, 3), 85]  # every third, and the last
    assert len(steps) == 85 and steps[1] == [] and steps[6] == [3, 6] and steps[-1] == [84, 85]

    longer = cg.LabelledImages(
        *(part.repeat_interleave(6, dim=0) for part in (tiny_data.images, tiny_data.labels)),
        tiny_data.classes,
    )
    cg.train(tiny_config.replace(epochs=41), longer, "cpu")  # of 21 steps
    assert "epoch  1/41" in capsys.readouterr().out


def test_a_whole_run_warns_of_a_class_that_does_not_depend_on_z(tiny_config, monkeypatch):
    """A generator that cannot see z: its first layer has no weights for it."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=rng)
    data = cg.LabelledImages(images, torch.arange(48) % 3, tiny_config.classes)

    class Blind(cg.Generator):
        def decode(self, z, embedded):
            return super().decode(torch.zeros_like(z), embedded)

    networks = Blind(tiny_config), cg.Discriminator(tiny_config), None
    monkeypatch.setattr("cgan_utils.state.create_networks", lambda config: networks)
    config = tiny_config.replace(epochs=334)  # of 3 steps
    with pytest.warns(UserWarning, match="dark, bright, striped hardly vary with z"):
        quiet_train(config, data)


def test_the_state_says_which_engine_ran(tiny_config, tiny_data):
    assert cg.TrainingState.create(tiny_config).engine is None
    assert quiet_train(tiny_config, tiny_data).engine == "eager"


# -- modes


def test_networks_train_in_train_mode_and_are_handed_out_in_eval_mode(tiny_config, tiny_data):
    """Whatever a callback leaves: `state.generator.train()` or `.eval()` is easily forgotten."""
    in_steps, in_callbacks = [], []

    def modes(state):
        networks = state.generator, state.discriminator
        return {module.training for network in networks for module in network.modules()}

    def step(state, *batch):
        in_steps.append(modes(state))
        return cg.training_step(state, *batch)

    def callback(state):
        in_callbacks.append(modes(state))
        state.generator.train()
        state.discriminator.eval()

    quiet_train(tiny_config, tiny_data, step=step, callback=callback)
    assert in_steps == [{True}] * 8 and in_callbacks == [{False}] * 2
    assert modes(quiet_train(tiny_config, tiny_data, max_steps=5)) == {False}  # within an epoch
    assert modes(cg.TrainingState.create(tiny_config)) == {True}  # for a step by hand


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": functools.partial(torch.autocast, "cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64,
}


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_do_not_change_the_training(
    mode, engine, tiny_config, tiny_data, tmp_path
):
    config = tiny_config.replace(epochs=3)
    expected = quiet_train(config, tiny_data, engine=engine)
    with MODES[mode]():
        dtype = torch.get_default_dtype()
        images, labels = tiny_data.images + 0, tiny_data.labels + 0  # made in this mode too
        data = cg.LabelledImages(images, labels, tiny_data.classes)
        state = quiet_train(config, data, engine=engine)
        part = quiet_train(config, data, engine=engine, max_steps=6)
        path = cg.save_checkpoint(tmp_path / "part.pt", part)
        resumed = quiet_train(config, data, engine=engine, resume_from=path)
        loaded = cg.load_checkpoint(path)
        assert torch.get_default_dtype() == dtype
    assert_same_bits(state, expected)
    assert_same_bits(resumed, expected)
    batch = training.sample_batch(loaded, tiny_data, torch.arange(16))
    assert cg.training_step(loaded, *batch).dtype == torch.float32  # it can be trained


# -- errors between epochs


def test_an_error_of_a_callback_carries_what_was_trained(tiny_config, tiny_data):
    def callback(state):
        if state.epoch == 2:
            raise ZeroDivisionError("a figure failed")

    expected = quiet_train(tiny_config, tiny_data)
    with pytest.raises(ZeroDivisionError) as caught:
        quiet_train(tiny_config.replace(epochs=4), tiny_data, callback=callback)
    assert_same_bits(caught.value.state, expected)
    assert "state holds what was trained so far: 8 steps" in "".join(caught.value.__notes__)


def test_a_full_disk_is_named_and_loses_nothing(tiny_config, tiny_data, tmp_path, monkeypatch):
    calls, fsync = itertools.count(1), os.fsync

    def full(file):
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(file)

    expected = quiet_train(tiny_config, tiny_data)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*step-000000008\.pt") as caught:
        quiet_train(tiny_config.replace(epochs=4), tiny_data, checkpoint_folder=tmp_path)
    assert_same_bits(caught.value.state, expected)
    assert cg.load_checkpoint(latest_checkpoint(tmp_path)).step == 4


# -- whole numbers of numpy, classes without images, other processes


def test_numpys_numbers_train_as_pythons_do(tiny_config, tiny_data, tmp_path):
    expected = quiet_train(tiny_config, tiny_data, seed=3, max_steps=5)
    state = quiet_train(tiny_config, tiny_data, seed=np.int64(3), max_steps=np.int32(5))
    assert_same_bits(state, expected)
    path = cg.save_checkpoint(tmp_path / "state.pt", state)
    assert type(cg.load_checkpoint(path).seed) is int  # and it loads, without numpy's classes


def test_classes_without_images_are_named(tiny_config, tiny_data):
    with pytest.warns(UserWarning, match="no image of dark, striped: .*subset") as said:
        quiet_train(tiny_config, tiny_data[tiny_data.labels == 1], max_steps=1)
    assert [w.filename for w in said] == [__file__]  # the caller's line
    with warnings.catch_warnings(action="error"):
        quiet_train(tiny_config, tiny_data, max_steps=1)


def test_processes_that_were_not_joined_are_told_so(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as SLURM scripts set it
    with pytest.warns(UserWarning, match=r"WORLD_SIZE is 4, .* each trains alone.*torchrun"):
        quiet_train(tiny_config, tiny_data, max_steps=1)


# -- the checkpoint folder


def test_a_folder_with_checkpoints_is_for_going_on_from_them(tiny_config, tiny_data, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    quiet_train(tiny_config, tiny_data, checkpoint_folder=folder)
    before = {path: path.read_bytes() for path in folder.glob("*.pt")}
    elsewhere = cg.save_checkpoint(other / "x.pt", cg.load_checkpoint(latest_checkpoint(folder)))
    longer, steps = tiny_config.replace(epochs=3), []

    def step(*arguments):
        steps.append(arguments)
        return cg.training_step(*arguments)

    for resume_from in (None, elsewhere):
        with pytest.raises(ValueError, match=r"checkpoint_folder: .*resume_from='.*000000008\.pt'"):
            quiet_train(
                longer, tiny_data, step=step, resume_from=resume_from, checkpoint_folder=folder
            )
    assert steps == [] and before == {path: path.read_bytes() for path in folder.glob("*.pt")}
    for resume_from, start in ((latest_checkpoint(folder), folder), (elsewhere, tmp_path / "new")):
        state = quiet_train(longer, tiny_data, resume_from=resume_from, checkpoint_folder=start)
        assert cg.load_checkpoint(latest_checkpoint(start)).step == state.step == 12


def test_a_folder_is_for_one_training_at_a_time(tiny_config, tiny_data, tmp_path):
    def callback(state):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .*choose"):
            quiet_train(tiny_config, tiny_data, checkpoint_folder=tmp_path)
        assert cg.load_checkpoint(latest_checkpoint(tmp_path)).step == state.step

    state = quiet_train(tiny_config, tiny_data, callback=callback, checkpoint_folder=tmp_path)
    assert state.step == 8
    quiet_train(
        tiny_config.replace(epochs=3),
        tiny_data,
        resume_from=latest_checkpoint(tmp_path),
        checkpoint_folder=tmp_path,
    )


HOLDER = """
import sys, time
import torch
import cgan_utils as cg

config = cg.CGANConfig(classes=("a",), image_shape=(1, 4, 4))
data = cg.LabelledImages(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.zeros(4).long(), ("a",))

def step(*batch):
    print("training", flush=True)
    time.sleep(600)

cg.train(config, data, "cpu", step=step, checkpoint_folder=sys.argv[1], progress=False)
"""


@pytest.mark.process
def test_a_killed_training_leaves_its_folder_free(tiny_config, tiny_data, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"training\n"
            with pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {other.pid} "):
                quiet_train(tiny_config, tiny_data, checkpoint_folder=tmp_path)
        finally:
            other.kill()
    quiet_train(tiny_config, tiny_data, checkpoint_folder=tmp_path)
    assert latest_checkpoint(tmp_path) is not None


# -- what it refuses


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"config": {"epochs": 2}}, TypeError),
        ({"data": torch.zeros(3)}, TypeError),
        ({"device": "abacus"}, ValueError),
        ({"engine": "steam"}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"max_steps": 0}, ValueError),
        ({"callback": 3}, TypeError),
        ({"step": "training_step"}, TypeError),
        ({"resume_from": 3}, TypeError),
        ({"resume_from": "nowhere.pt"}, FileNotFoundError),
        ({"resume_from": __file__}, ValueError),
        ({"checkpoint_folder": 3}, TypeError),
        ({"checkpoint_folder": __file__}, ValueError),
        ({"checkpoint_folder": "/sys"}, ValueError),  # refuses new files, even to root
    ],
)
def test_bad_arguments_are_named(change, error, spy, tiny_config, tiny_data):
    arguments = {"config": tiny_config, "data": tiny_data, "device": "cpu"} | change
    with pytest.raises(error, match=rf"^{next(iter(change))}\b"):
        cg.train(**arguments)
    assert spy == []  # before any work was done


def test_data_that_does_not_fit_the_config_is_named(tiny_config, tiny_data):
    with pytest.raises(ValueError, match=r"image_shape \(1, 8, 8\)"):
        quiet_train(tiny_config.replace(image_shape=(1, 28, 28)), tiny_data)
    with pytest.raises(ValueError, match="classes"):
        quiet_train(tiny_config.replace(classes=("a", "b", "c")), tiny_data)


def test_resuming_another_recipe_is_refused(tiny_config, tiny_data, tmp_path):
    path = tmp_path / "x.pt"
    cg.save_checkpoint(path, quiet_train(tiny_config, tiny_data, max_steps=1))
    was = rf"resume_from: {path} was trained with"
    other = tiny_config.replace(learning_rate=1.0, epochs=5)
    with pytest.raises(ValueError, match=rf"^{was} learning_rate 0.0002; got learning_rate 1.0$"):
        quiet_train(other, tiny_data, resume_from=path)
    with pytest.raises(ValueError, match=rf"^{was} seed 0; got seed 5$"):
        quiet_train(tiny_config, tiny_data, seed=5, resume_from=path)
    tuned = cg.CGANConfig.tuned().replace(classes=other.classes, image_shape=other.image_shape)
    with pytest.raises(ValueError, match=rf"^{was} recipe original; got recipe tuned$"):
        quiet_train(tuned, tiny_data, resume_from=path)


def test_resuming_with_fewer_images_is_refused(tiny_config, tiny_data, tmp_path):
    path = cg.save_checkpoint(tmp_path / "x.pt", quiet_train(tiny_config, tiny_data, max_steps=6))
    with pytest.raises(ValueError, match=r"resume_from: .* 6 steps are 1 epochs there, .* 2 steps"):
        quiet_train(tiny_config, tiny_data[:24], resume_from=path)


# -- CUDA

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@needs_cuda
def test_cuda_trains_from_the_same_weights_and_resumes(tiny_config, tiny_data, tmp_path):
    fresh = cg.TrainingState.create(tiny_config, seed=0, device="cuda")
    on_cpu = weights(cg.TrainingState.create(tiny_config, seed=0).generator)
    assert equal([p.cpu() for p in weights(fresh.generator)], on_cpu)
    whole = cg.train(tiny_config, tiny_data, device="cuda", progress=False)
    assert whole.device.type == "cuda" and next(whole.generator.parameters()).is_cuda
    part = cg.train(tiny_config, tiny_data, device="cuda", progress=False, max_steps=5)
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    resumed = cg.train(tiny_config, tiny_data, device="cuda", progress=False, resume_from=path)
    for a, b in zip(weights(whole.generator), weights(resumed.generator), strict=True):
        torch.testing.assert_close(a, b)


@needs_cuda
def test_cuda_step_equals_the_cpu_step(tiny_config, batch):
    cpu = cg.TrainingState.create(tiny_config, seed=0)
    cuda = cg.TrainingState.create(tiny_config, seed=0, device="cuda")
    for _ in range(5):
        expected = cg.training_step(cpu, *batch)
        measured = cg.training_step(cuda, *[tensor.cuda() for tensor in batch])
        torch.testing.assert_close(measured.cpu(), expected, atol=1e-4, rtol=1e-4)

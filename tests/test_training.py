"""The classic silent bugs of GAN training, each looked for; and the loop's promises."""

import copy
import functools
import itertools
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import cgan_utils as cg
from cgan_utils import training


@pytest.fixture
def state(tiny_config):
    return cg.TrainingState.create(tiny_config, seed=0)


@pytest.fixture
def batch(tiny_config, tiny_data):
    """images, labels, z, fake_labels of one step; real and fake labels differ everywhere."""
    images, labels = cg.normalize(tiny_data.images[:16]), tiny_data.labels[:16]
    z = cg.draw_latent(16, tiny_config.latent_dim, seed=1)
    return images, labels, z, (labels + 1) % 3


def quiet_train(*args, **kwargs):
    return cg.train(*args, progress=False, device="cpu", **kwargs)


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same_bits(state, expected):
    assert state.step == expected.step and state.history == expected.history
    for network in ("generator", "live_generator", "discriminator"):
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


# -- what the tuned recipe adds


@pytest.fixture
def tuned_config(tiny_config):
    """The tuned recipe at the size of the tiny one."""
    sizes = ("classes", "image_shape", "embedding_dim", "latent_dim", "hidden_dim", "epochs")
    return cg.CGANConfig.tuned().replace(
        batch_size=16,
        learning_rate=1e-3,
        mismatch_weight=0.5,  # 1, the recipe's, would hide it
        **{name: getattr(tiny_config, name) for name in sizes},
    )


def test_gradient_penalty_of_known_gradients():
    images = torch.randn(6, 1, 4, 5, requires_grad=True)
    slope = torch.randn(20)
    linear = images.flatten(1) @ slope  # its gradient is the slope everywhere
    torch.testing.assert_close(training.gradient_penalty(linear, images), slope @ slope)
    bowl = images.square().flatten(1).sum(dim=1) / 2  # its gradient is the image itself
    expected = images.detach().square().sum() / 6
    torch.testing.assert_close(training.gradient_penalty(bowl, images), expected)


def test_mismatch_loss_looks_at_wrong_labels_only():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = [
        -math.log(1 - 1 / (1 + math.exp(-logits[i, y])))
        for i, y in itertools.product(range(6), range(3))
        if y != labels[i]
    ]
    assert training.mismatch_loss(logits, labels).item() == pytest.approx(sum(expected) / 12)
    guessing = training.mismatch_loss(torch.zeros(6, 3), labels)
    assert guessing.item() == pytest.approx(math.log(2))


def test_the_penalty_can_be_learned_from():
    """Its own gradient, through a network, against a difference quotient."""
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    points = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def penalty(weight):
        return training.gradient_penalty((points @ weight.T).tanh().sum(dim=1), points)

    assert torch.autograd.gradcheck(penalty, weight)


def test_tuned_steps_equal_the_algorithm_written_out(tuned_config, batch):
    """Ten steps, two of them penalized, against code of its own: see the original's test."""
    state = cg.TrainingState.create(tuned_config, seed=0)
    for network in (state.generator, state.live_generator, state.discriminator):
        network.double()  # Adam divides by gradients near zero: single precision drifts
    images, labels, z, fake_labels = batch = [
        t.double() if t.is_floating_point() else t for t in batch
    ]
    g, d = copy.deepcopy(state.live_generator), copy.deepcopy(state.discriminator)
    opt_g = torch.optim.Adam(g.parameters(), lr=5e-4, betas=(0.0, 0.99))
    opt_d = torch.optim.Adam(d.parameters(), lr=5e-4, betas=(0.0, 0.99))
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        optimizer.param_groups[0]["lr"] = 5e-4  # as in the middle of a run: gamma is 1.1
    average = {name: p.detach().clone() for name, p in g.state_dict().items()}
    bce, one, zero = nn.BCELoss(), torch.ones(16).double(), torch.zeros(16).double()
    for step in range(10):
        fake = g(z, fake_labels)
        loss_d = bce(d(images, labels).sigmoid(), one)
        loss_d = loss_d + bce(d(fake.detach(), fake_labels).sigmoid(), zero)
        wrong = [
            bce(d(image.unsqueeze(0), torch.tensor([y])).sigmoid(), zero[:1])
            for image, own in zip(images, labels, strict=True)
            for y in range(3)
            if y != own
        ]
        mismatch, penalty = sum(wrong) / len(wrong), 0
        if step in (0, 8):
            real = images.clone().requires_grad_()
            squares = [
                torch.autograd.grad(d(real, labels)[i], real, create_graph=True)[0].square().sum()
                for i in range(16)
            ]
            penalty = 8 * 1.1 / 2 * sum(squares) / 16
        opt_d.zero_grad()
        (loss_d + mismatch / 2 + penalty).backward()
        opt_d.step()
        loss_g = bce(d(fake, fake_labels).sigmoid(), one)
        opt_g.zero_grad()
        loss_g.backward()
        opt_g.step()
        kept = min(0.999, (1 + step) / (10 + step))
        for name, value in g.state_dict().items():
            average[name] = kept * average[name] + (1 - kept) * value
        measured = cg.training_step(state, *batch)
        state.step += 1
        torch.testing.assert_close(measured[0], loss_d.detach())
        torch.testing.assert_close(measured[1], loss_g.detach())
    for ours, plain in ((state.live_generator, g), (state.discriminator, d)):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    for name, value in state.generator.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])


def test_without_an_average_the_live_generator_is_sampled_from(state):
    assert state.generator is state.live_generator


def test_the_average_ends_near_where_the_live_weights_stay(tuned_config, batch):
    state = cg.TrainingState.create(tuned_config.replace(ema_decay=0.9))
    for parameter in state.live_generator.parameters():
        parameter.data.fill_(3.0)
    for state.step in range(200):
        training.update_average(state)
    assert all((p - 3).abs().max() < 1e-5 for p in state.generator.parameters())


def test_learning_rate_falls_in_a_line_to_zero(tuned_config, tiny_data, monkeypatch):
    rates, step = [], training.training_step

    def recording(state, *batch):
        optimizers = (state.generator_optimizer, state.discriminator_optimizer)
        rates.append([group["lr"] for o in optimizers for group in o.param_groups])
        return step(state, *batch)

    monkeypatch.setattr(training, "training_step", recording)
    quiet_train(tuned_config, tiny_data)
    assert rates == [[pytest.approx(1e-3 * (8 - k) / 8)] * 2 for k in range(8)]


@pytest.mark.parametrize(("batch_size", "processes"), [(53, 1), (1, 1), (13, 2)])
def test_batch_norm_cannot_train_on_a_batch_of_one(
    batch_size, processes, tuned_config, tiny_data, monkeypatch
):
    monkeypatch.setattr(training, "processes", lambda: processes)
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} .* {54 // processes} images"):
        quiet_train(tuned_config.replace(batch_size=batch_size), tiny_data)


def test_each_process_needs_an_image(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(training, "processes", lambda: 55)
    with pytest.raises(ValueError, match=r"data must .* 55 processes; got 54"):
        quiet_train(tiny_config, tiny_data)


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
    history = torch.tensor([state.history[name] for name in training.MEASURES]).T
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
@pytest.mark.parametrize("recipe", ["tiny_config", "tuned_config"])
def test_resuming_equals_the_uninterrupted_run(recipe, stop, tiny_data, tmp_path, request):
    config = request.getfixturevalue(recipe)
    whole = quiet_train(config, tiny_data)
    part = quiet_train(config, tiny_data, max_steps=stop)
    assert part.step == stop
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    assert_same_bits(quiet_train(config, tiny_data, resume_from=path), whole)


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
    state = quiet_train(tiny_config, tiny_data)
    assert (state.step, state.epoch) == (5, 1)
    assert "interrupted after step 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [("generator_step", 3, 3), ("generator_step", 8, 8), ("_check_finite", 1, 4)],
)
def test_an_interrupt_leaves_neither_step_nor_epoch_half_done(
    place, call, step, tuned_config, tiny_data, monkeypatch, tmp_path, capsys, ctrl_c
):
    """A real SIGINT in the middle of a step, of the last one, and after an epoch's last one."""
    whole = quiet_train(tuned_config, tiny_data)
    calls, function = itertools.count(1), getattr(training, place)

    def interrupted(*args):
        if next(calls) == call:
            ctrl_c()
        return function(*args)

    monkeypatch.setattr(training, place, interrupted)
    part = quiet_train(tuned_config, tiny_data)
    assert f"interrupted after step {step};" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (part.step, part.epoch) == (step, step // 4)
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    assert_same_bits(quiet_train(tuned_config, tiny_data, resume_from=path), whole)


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


def test_training_in_another_thread(tiny_config, tiny_data):
    with ThreadPoolExecutor() as pool:
        state = pool.submit(quiet_train, tiny_config, tiny_data).result()
    assert_same_bits(state, quiet_train(tiny_config, tiny_data))


def test_a_loss_that_is_not_finite_stops_with_the_step(
    tiny_config, tiny_data, monkeypatch, tmp_path
):
    step, calls = training.training_step, []

    def poisoned(*args):
        calls.append(args)
        measures = step(*args)
        return measures * math.nan if len(calls) == 7 else measures

    monkeypatch.setattr(training, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 7: .*nan.*checkpoint: none"):
        quiet_train(tiny_config, tiny_data)
    calls.clear()
    with pytest.raises(FloatingPointError, match=r"step 7: .*nan.*step-000000004\.pt"):
        quiet_train(tiny_config, tiny_data, checkpoint_folder=tmp_path)
    assert cg.load_checkpoint(cg.newest_checkpoint(tmp_path)).step == 4


def test_checkpoints_that_cannot_be_loaded_do_not_hide_it(tiny_config, tiny_data, tmp_path):
    (tmp_path / "step-000000009.pt").write_text("another version's")
    options = dict(step=lambda *_: torch.full((4,), math.nan), checkpoint_folder=tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 1: .*checkpoint: none"):
        quiet_train(tiny_config, tiny_data, **options)


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
    with pytest.raises(ValueError, match="resume_from"):
        quiet_train(tiny_config.replace(learning_rate=1.0), tiny_data, resume_from=path)
    with pytest.raises(ValueError, match="resume_from"):
        quiet_train(tiny_config, tiny_data, seed=5, resume_from=path)


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

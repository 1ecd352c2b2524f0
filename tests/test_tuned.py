"""All that the tuned recipe adds: each part by hand, and that the plain GAN does without it."""

import ast
import copy
import itertools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cgan_utils as cg
from cgan_utils import training, tuned

PACKAGE = Path(cg.__file__).parent
CONFIG = cg.CGANConfig.original()
OFF = tuned.TunedConfig()  # all switches off
TUNED = cg.CGANConfig.tuned()


def quiet_train(*args, **kwargs):
    return cg.train(*args, progress=False, device="cpu", **kwargs)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


SIZES = ("classes", "image_shape", "embedding_dim", "latent_dim", "hidden_dim", "epochs")


def at_tiny_size(config, tiny_config):
    sizes = {name: getattr(tiny_config, name) for name in SIZES}
    return config.replace(batch_size=16, learning_rate=1e-3, **sizes)


@pytest.fixture
def tuned_config(tiny_config):
    """The tuned recipe at the size of the tiny one."""
    # a weight of 1, the recipe's, would hide a loss that is not weighted
    return at_tiny_size(TUNED, tiny_config).replace(matching_aware_weight=0.5)


# -- an add-on

PLAIN = ("config", "data", "models", "state", "checkpoints", "training", "sampling", "classifier")


@pytest.mark.parametrize("module", [*PLAIN, "evaluation", "plotting", "pretrained/__init__"])
def test_the_plain_gan_does_not_import_it(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    ]
    assert not [name for name in names if "tuned" in name]


@pytest.mark.process
def test_without_its_file_the_rest_still_runs(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "cgan_utils")
    (tmp_path / "cgan_utils" / "tuned.py").unlink()
    door = tmp_path / "cgan_utils" / "__init__.py"
    source = door.read_text(encoding="utf-8")
    source = source.replace("import plotting, pretrained, tuned", "import plotting, pretrained")
    door.write_text(source.replace('    "tuned",\n', ""), encoding="utf-8")
    code = """if True:
        import torch, cgan_utils as cg
        images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
        data = cg.LabelledImages(images, torch.arange(40) % 10, cg.FASHION_MNIST_CLASSES)
        state = cg.train(cg.CGANConfig.original(), data, "cpu", max_steps=3, progress=False)
        state = cg.load_checkpoint(cg.save_checkpoint("run.pt", state))
        print(cg.__file__, cg.sample(state, ["Bag"]).shape, cg.load_pretrained("original").training)
        assert not hasattr(cg.CGANConfig, "tuned")
    """
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path)) and run.stdout.strip().endswith("False")


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_with_all_switches_off_it_computes_the_plain_recipe(engine, tiny_config, tiny_data):
    fields = {k: v for k, v in tiny_config.to_dict().items() if k != "recipe"}
    off = tuned.TunedConfig.from_dict({"recipe": "tuned", **fields})
    assert isinstance(off, tuned.TunedConfig)
    plain, same = (quiet_train(c, tiny_data, engine=engine) for c in (tiny_config, off))
    assert type(same.generator) is not type(plain.generator) and same.generator_ema is None
    for network in ("generator", "discriminator"):
        assert equal(*(getattr(state, network).parameters() for state in (plain, same)))
    assert plain.history == same.history
    assert torch.equal(cg.sample(plain, [0, 1, 2]), cg.sample(same, [0, 1, 2]))


SWITCHES = {
    "hidden_layers": {"hidden_layers": 3},
    "learning_rate_decay": {"learning_rate_decay": True},
    "ema_decay": {"ema_decay": 0.9},
    "projection": {"projection": True},
    "r1_gamma": {"r1_gamma": 0.5},
    "conditional_batch_norm": {"conditional_batch_norm": True},
    "edge_features": {"edge_features": True},
    "matching_aware_weight": {"matching_aware_weight": 1.0, "projection": True},
    "patch_decoder": {"patch_decoder": True},
    "instance_noise": {"instance_noise": 0.1},
    "balanced_classes": {"balanced_classes": True},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone_trains_and_changes_something(switch, tiny_config, tiny_data):
    off = at_tiny_size(OFF, tiny_config)
    config = off.replace(**SWITCHES[switch])
    state, plain = quiet_train(config, tiny_data), quiet_train(off, tiny_data)
    assert state.step == plain.step == 8 and all(map(math.isfinite, state.history["loss_d"]))
    images = [cg.sample(s, [0, 1, 2], latent_scale=1.0) for s in (state, plain)]
    assert images[0].isfinite().all() and not torch.equal(*images)


def test_every_switch_is_tried():
    own = set(vars(tuned.TunedConfig)["__annotations__"]) - {"recipe", "min_steps"}
    assert own == set(SWITCHES)


@pytest.mark.parametrize("source", ["train", "callback", "a checkpoint"])
def test_generators_are_handed_out_ready_to_generate(source, tuned_config, tiny_data, tmp_path):
    """In train mode, batch norm would refuse one image, and change with each batch it sees."""
    given = []

    def use(state):
        for network in (state.generator, state.generator_ema):
            before = copy.deepcopy(network.state_dict())
            z, labels = cg.sample_latent(5, tuned_config.latent_dim), torch.tensor([0, 1, 2, 0, 1])
            alone, together = network(z[:1], labels[:1]), network(z, labels)[:1]
            torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
            assert equal(network.state_dict().values(), before.values())
            given.append(network)

    callback = use if source == "callback" else None
    state = quiet_train(tuned_config, tiny_data, callback=callback)
    if source == "train":
        use(state)
    elif source == "a checkpoint":
        use(cg.load_checkpoint(cg.save_checkpoint(tmp_path / "state.pt", state)))
    assert len(given) in (2, 4)
    undisturbed = quiet_train(tuned_config, tiny_data)
    assert equal(state.generator.state_dict().values(), undisturbed.generator.state_dict().values())


# -- the configuration


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs"),
    [
        (60_000, 96, 40),
        (6_000, 60, 40),
        (3_000, 32, 40),
        (600, 32, 106),  # 106 x 19 steps are the first number of whole epochs with 2,000
        (97, 31, 500),  # 97 = 3 x 32 + 1: batch norm cannot train on the one
        (30, 30, 2_000),
    ],
)
def test_for_data_makes_enough_steps_of_enough_images(count, batch_size, epochs):
    images = torch.zeros(count, 3, 8, 12, dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(count) % 2, ("cat", "dog"))
    config = TUNED.for_data(data)
    assert (config.classes, config.image_shape) == (("cat", "dog"), (3, 8, 12))
    assert (config.batch_size, config.epochs, config.instance_noise) == (batch_size, epochs, 0.1)
    unchanged = TUNED.replace(classes=config.classes, image_shape=config.image_shape)
    fitted = {"batch_size": 96, "epochs": 40, "instance_noise": 0.0}
    assert config.replace(**fitted) == unchanged


@pytest.mark.parametrize(("rare", "balanced"), [(25, False), (24, True)])
def test_for_data_balances_very_unequal_classes(rare, balanced):
    labels = torch.cat([torch.zeros(100), torch.ones(rare)]).long()
    data = cg.LabelledImages(torch.zeros(len(labels), 1, 8, 8).byte(), labels, ("cat", "dog"))
    assert TUNED.for_data(data).balanced_classes == balanced


def test_for_data_of_one_class_has_no_wrong_labels_to_reject():
    data = cg.LabelledImages(
        torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.zeros(9).long(), ("x",)
    )
    assert TUNED.for_data(data).matching_aware_weight == 0


def test_tuned_is_the_same_data_and_its_own_kind():
    assert (TUNED.classes, TUNED.image_shape) == (CONFIG.classes, CONFIG.image_shape)
    assert cg.CGANConfig.tuned() == tuned.TunedConfig.tuned() != OFF
    assert cg.CGANConfig.from_dict(TUNED.to_dict()) == TUNED
    assert cg.CGANConfig.from_dict(OFF.to_dict()) == OFF != CONFIG


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("hidden_layers", 0, ValueError),
        ("epochs", 0, ValueError),
        ("ema_decay", 1.0, ValueError),
        ("ema_decay", -0.1, ValueError),
        ("r1_gamma", -1.0, ValueError),
        ("r1_gamma", math.inf, ValueError),
        ("r1_gamma", True, TypeError),
        ("projection", 1, TypeError),
        ("conditional_batch_norm", None, TypeError),
        ("matching_aware_weight", -1.0, ValueError),
        ("matching_aware_weight", 1.0, ValueError),  # without projection
    ],
)
def test_bad_fields_are_named(field, value, error):
    with pytest.raises(error, match=field):
        OFF.replace(**{field: value})


# -- the networks


def test_tuned_layer_sizes_counted_by_hand():
    def sizes(network):
        return sorted(p.numel() for p in network.parameters())

    norm = [96 * 1024, 1024]  # scale and shift of 512 units, from 64 numbers of z and 32 of y
    hidden = [512 * 512] * 2
    norm_of = [96 * 2 * units for units in (24, 64)] + [2 * units for units in (24, 64)]
    patches = [512 * 24 * 49, 24 * 64, 64 * 8 * 8, 8 * 8, *norm_of]  # 24 features at 7 x 7 places
    assert sizes(tuned.TunedGenerator(TUNED)) == sorted(
        [10 * 32, (64 + 32) * 512, *hidden, *norm * 3, *patches]  # the shift is the bias
    )
    assert sizes(tuned.ProjectionDiscriminator(TUNED)) == sorted(
        [10 * 512, (3 * 784 + 4 * 49) * 512, *hidden, *[512] * 3, 512, 1]
    )


def randomized(network, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=numbers) / 5
    return network


def test_conditional_batch_norm_by_hand():
    generator = randomized(tuned.TunedGenerator(OFF.replace(conditional_batch_norm=True)))
    z, labels = torch.randn(50, 100), torch.arange(50) % 10
    inputs = torch.hstack([z, generator.embedding(labels)])
    h, moments = inputs, []
    for layer, norm in zip(generator.hidden, generator.norms, strict=True):
        h = h @ layer.weight.T
        moments.append((h.mean(dim=0), h.var(dim=0)))
        h = (h - h.mean(dim=0)) / (h.var(dim=0, correction=0) + 1e-5).sqrt()
        table = norm.scale_and_shift(inputs)
        h = ((1 + table[:, :256]) * h + table[:, 256:]).clamp(min=0)
    expected = torch.tanh(h @ generator.output.weight.T + generator.output.bias)
    torch.testing.assert_close(generator(z, labels).flatten(1), expected, atol=1e-4, rtol=1e-4)
    for norm, (mean, variance) in zip(generator.norms, moments, strict=True):  # a tenth is taken in
        torch.testing.assert_close(norm.normalize.running_mean, mean / 10)
        torch.testing.assert_close(norm.normalize.running_var, 0.9 + variance / 10)


def test_conditional_batch_norm_starts_as_plain_batch_norm():
    norm = tuned.TunedGenerator(TUNED).norms[0]
    h = torch.randn(40, 512) * 3 + 1
    plain = torch.nn.BatchNorm1d(512)(h)
    torch.testing.assert_close(norm(h, torch.randn(40, 96)), plain)


@pytest.mark.parametrize("conditional_batch_norm", [False, True])
def test_patch_decoder_by_hand(conditional_batch_norm):
    """One place after the other, on a canvas with room around the image."""
    config = OFF.replace(image_shape=(3, 6, 8), conditional_batch_norm=conditional_batch_norm)
    patches = randomized(tuned.PatchDecoder(config))
    h, inputs = torch.randn(5, 256), torch.randn(5, 110)

    def activate(x, norm):  # (places, N, units)
        if conditional_batch_norm:
            spread, mean = torch.var_mean(x, dim=(0, 1), correction=0)
            scale, shift = (inputs @ norm.scale_and_shift.weight.T).chunk(2, dim=1)
            at_zero = norm.scale_and_shift.bias.chunk(2)
            x = (x - mean) / (spread + 1e-5).sqrt()
            x = (1 + scale + at_zero[0]) * x + shift + at_zero[1]
        return x.clamp(min=0)

    def linear(x, layer):
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    features = linear(h, patches.features).reshape(5, 24, 4)
    places = torch.stack([features[:, :, place] for place in range(4)])
    hidden = activate(linear(activate(places, patches.norms[0]), patches.hidden), patches.norms[1])
    canvas = torch.zeros(5, 3, 12, 12)
    for drawn, (y, x) in zip(
        linear(hidden, patches.output), itertools.product(range(2), range(2)), strict=True
    ):
        canvas[:, :, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8] += drawn.reshape(5, 3, 8, 8)
    found = patches(h, inputs)
    torch.testing.assert_close(found, canvas[:, :, 2:8, 2:10], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 8), (2, 4, 4)])
def test_patches_are_added_as_fold_does_and_so_are_their_gradients(shape, dtype):
    channels, height, width = shape
    patches = torch.randn(height // 4 * (width // 4), 5, 64 * channels, dtype=dtype)
    patches.requires_grad_()
    found = tuned.add_patches(patches, height, width)
    expected = F.fold(patches.permute(1, 2, 0), (height, width), 8, padding=2, stride=4)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(found, patches, weights)
    assert torch.equal(gradient, *torch.autograd.grad(expected, patches, weights))


def test_projection_by_hand():
    discriminator = randomized(tuned.ProjectionDiscriminator(OFF)).double()
    images, labels = torch.rand(4, 1, 28, 28).double() * 2 - 1, torch.tensor([7, 0, 2, 2])
    h = images.reshape(4, 784)
    for layer in discriminator.hidden:
        h = h @ layer.weight.T + layer.bias
        h = torch.where(h > 0, h, 0.2 * h)
    table, output = discriminator.embedding.weight, discriminator.output
    expected = [output.bias[0] + (output.weight[0] + table[y]) @ h[i] for i, y in enumerate(labels)]
    torch.testing.assert_close(discriminator(images, labels), torch.stack(expected))
    every_label = torch.stack([discriminator(images, labels * 0 + y) for y in range(10)], dim=1)
    torch.testing.assert_close(discriminator(images), every_label)


def test_image_gradients_by_hand():
    images = torch.randn(2, 3, 4, 5)
    expected = torch.zeros(2, 6, 4, 5)
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        here = images[n, c, y, x]
        if y < 3:
            expected[n, c, y, x] = 10 * (images[n, c, y + 1, x] - here)
        if x < 4:
            expected[n, 3 + c, y, x] = 10 * (images[n, c, y, x + 1] - here)
    torch.testing.assert_close(tuned.image_gradients(images), expected)


def test_edge_histogram_by_hand():
    differences = torch.randn(2, 2, 8, 6)  # 6: the last cells are two pixels wide
    expected = torch.zeros(2, 4, 2, 2)
    for n, c, y, x in itertools.product(range(2), range(2), range(2), range(2)):
        cell = differences[n, c, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        expected[n, c, y, x] = 3 * cell[cell > 0].sum() / cell.numel()
        expected[n, 2 + c, y, x] = -3 * cell[cell < 0].sum() / cell.numel()
    torch.testing.assert_close(tuned.edge_histogram(differences), expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 28, 28), (1, 2, 1, 3), (4, 1, 1, 1)])
def test_fold_gradient_weights_do_what_weights_of_the_differences_do(shape):
    n, channels, *size = shape
    images = torch.randn(shape).double()
    weights = torch.randn(n, 2 * channels, *size).double()
    by_differences = (weights * tuned.image_gradients(images)).sum()
    torch.testing.assert_close(
        (tuned.fold_gradient_weights(weights) * images).sum(), by_differences
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 6)])
@pytest.mark.parametrize("more", [0, 7])
def test_edge_features_is_one_layer_on_all_that_it_tells(shape, more):
    config = TUNED.replace(image_shape=shape)
    layer = randomized(tuned.EdgeFeatures(config, config.image_size + more)).double()
    images, others = torch.randn(4, *shape).double(), torch.randn(4, more).double()
    differences = tuned.image_gradients(images)
    told = images, differences, others, tuned.edge_histogram(differences)
    everything = torch.cat([part.flatten(1) for part in told], dim=1)
    found = layer(torch.cat([images.flatten(1), others], dim=1))
    torch.testing.assert_close(found, everything @ layer.weight.T + layer.bias)


def test_the_discriminator_sees_pixels_then_differences_then_edges():
    """With the other columns of its first layer at zero, D is blind to the rest."""

    def edge(column):
        image = torch.full((1, 1, 28, 28), 0.3)
        image[..., column + 1 :] = 0.5
        return image

    flat, brighter = edge(27), edge(27) + 0.1
    at_13, at_14, at_17 = edge(13), edge(14), edge(17)  # the first two in the same cell

    def equal(columns, one, other):
        discriminator = randomized(tuned.ProjectionDiscriminator(TUNED))
        seen = torch.zeros(784 * 3 + 4 * 49)
        seen[columns] = 1
        discriminator.hidden[0].weight.data *= seen
        verdicts = [discriminator(image, torch.tensor([4])) for image in (one, other)]
        return torch.isclose(*verdicts, rtol=1e-4, atol=1e-3).item()

    pixels, differences, edges = slice(784), slice(784, 3 * 784), slice(3 * 784, None)
    assert not equal(pixels, flat, brighter)
    assert equal(differences, flat, brighter) and equal(edges, flat, brighter)
    assert not equal(differences, at_13, at_14)
    assert equal(edges, at_13, at_14) and not equal(edges, at_13, at_17)


def test_tuned_on_other_image_shapes():
    config = TUNED.replace(image_shape=(3, 1, 5), classes=("a", "b"))
    labels = torch.tensor([0, 1, 0, 1, 1])
    images = tuned.TunedGenerator(config)(torch.randn(5, 64), labels)
    assert images.shape == (5, 3, 1, 5)
    assert tuned.ProjectionDiscriminator(config)(images, labels).shape == (5,)


def test_the_networks_fit_together_in_mixed_precision():
    labels = torch.arange(10)
    with torch.autocast("cpu", torch.bfloat16):
        images = tuned.TunedGenerator(TUNED)(torch.zeros(10, 64), labels)
        logits = tuned.ProjectionDiscriminator(TUNED)(images, labels)
    assert images.shape == (10, 1, 28, 28) and logits.shape == (10,)


# -- the losses and the step


def test_r1_penalty_of_known_gradients():
    images = torch.randn(6, 1, 4, 5, requires_grad=True)
    slope = torch.randn(20)
    linear = images.flatten(1) @ slope  # its gradient is the slope everywhere
    torch.testing.assert_close(tuned.r1_penalty(linear, images), slope @ slope)
    bowl = images.square().flatten(1).sum(dim=1) / 2  # its gradient is the image itself
    expected = images.detach().square().sum() / 6
    torch.testing.assert_close(tuned.r1_penalty(bowl, images), expected)


def test_matching_aware_loss_looks_at_wrong_labels_only():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = [
        -math.log(1 - 1 / (1 + math.exp(-logits[i, y])))
        for i, y in itertools.product(range(6), range(3))
        if y != labels[i]
    ]
    assert tuned.matching_aware_loss(logits, labels).item() == pytest.approx(sum(expected) / 12)
    guessing = tuned.matching_aware_loss(torch.zeros(6, 3), labels)
    assert guessing.item() == pytest.approx(math.log(2))


def test_the_penalty_can_be_learned_from():
    """Its own gradient, through a network, against a difference quotient."""
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    points = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def penalty(weight):
        return tuned.r1_penalty((points @ weight.T).tanh().sum(dim=1), points)

    assert torch.autograd.gradcheck(penalty, weight)


def test_tuned_steps_equal_the_algorithm_written_out(tuned_config, batch):
    """Ten steps, two of them with R1, against code of its own: see the original's test."""
    state = cg.TrainingState.create(tuned_config, seed=0)
    for network in (state.generator, state.generator_ema, state.discriminator):
        network.double()  # Adam divides by gradients near zero: single precision drifts
    images, labels, z, fake_labels = batch = [
        t.double() if t.is_floating_point() else t for t in batch
    ]
    g, d = copy.deepcopy(state.generator), copy.deepcopy(state.discriminator)
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
        tuned.set_schedule(state)
        measured = tuned.training_step(state, *batch)
        state.step += 1
        torch.testing.assert_close(measured[0], loss_d.detach())
        torch.testing.assert_close(measured[1], loss_g.detach())
    for ours, plain in ((state.generator, g), (state.discriminator, d)):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    for name, value in state.generator_ema.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])


def test_instance_noise_is_fresh_normal_noise_beside_the_plain_batch(tuned_config, tiny_data):
    noisy = cg.TrainingState.create(tuned_config.replace(instance_noise=0.3), seed=1)
    plain = cg.TrainingState.create(tuned_config, seed=1)
    batch = torch.arange(54)
    *inputs, noise = tuned.sample_batch(noisy, tiny_data, batch)
    assert equal(inputs, tuned.sample_batch(plain, tiny_data, batch))
    assert noise.shape == (54, 2, 1, 8, 8)  # each image's own: processes share a batch by rows
    assert noise.mean().item() == pytest.approx(0, abs=0.01)  # four standard errors
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert not torch.equal(tuned.sample_batch(noisy, tiny_data, batch)[-1], noise)


def test_balanced_classes_are_equally_frequent_and_so_are_the_images_of_each(tuned_config):
    labels = torch.tensor([0] * 300 + [1] * 30 + [2] * 3)
    images = torch.arange(333)[:, None, None, None].expand(-1, 1, 8, 8) % 256
    data = cg.LabelledImages(images.byte(), labels, tuned_config.classes)
    state = cg.TrainingState.create(tuned_config.replace(balanced_classes=True))
    inputs = [tuned.sample_batch(state, data, torch.arange(300)) for _ in range(20)]
    seen = torch.cat([labels for _, labels, *_ in inputs])
    assert seen.bincount() == pytest.approx(2000, abs=150)  # of 6,000; four standard errors
    rare = torch.cat([images[labels == 2, 0, 0, 0] for images, labels, *_ in inputs])
    _, counts = rare.unique(return_counts=True)
    assert len(counts) == 3 and counts.min() > 550  # of about 667 each


def test_the_discriminator_sees_every_image_with_its_noise(tuned_config, batch):
    state = cg.TrainingState.create(tuned_config)
    tuned.set_schedule(state)
    images, _, z, fake_labels = batch
    noise = torch.randn(16, 2, 1, 8, 8)
    with torch.no_grad():
        fake = copy.deepcopy(state.generator)(z, fake_labels)
    seen = []
    state.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    tuned.training_step(state, *batch, noise)
    noisy_fake = fake + noise[:, 1]
    expected = torch.cat([images + noise[:, 0], noisy_fake]), noisy_fake
    assert equal(seen, expected)  # D's update, then G's


def test_a_state_is_sampled_from_its_moving_average(tuned_config):
    state = cg.TrainingState.create(tuned_config)
    for parameter in state.generator.parameters():
        parameter.data += 1
    expected = cg.sample(state.generator_ema, [0, 1, 2])
    assert torch.equal(cg.sample(state, [0, 1, 2]), expected)
    assert not torch.equal(cg.sample(state.generator, [0, 1, 2]), expected)
    assert torch.equal(cg.class_grid(state, 2), cg.class_grid(state.generator_ema, 2))


def test_the_average_ends_near_where_the_parameters_stay(tuned_config):
    state = cg.TrainingState.create(tuned_config.replace(ema_decay=0.9))
    for parameter in state.generator.parameters():
        parameter.data.fill_(3.0)
    for state.step in range(200):
        tuned.set_schedule(state)
        tuned.update_ema(state)
    assert all((p - 3).abs().max() < 1e-5 for p in state.generator_ema.parameters())


def test_learning_rate_falls_in_a_line_to_zero(tuned_config, tiny_data, monkeypatch):
    rates, step = [], tuned.training_step

    def recording(state, *batch):
        optimizers = (state.generator_optimizer, state.discriminator_optimizer)
        rates.append([group["lr"] for o in optimizers for group in o.param_groups])
        return step(state, *batch)

    monkeypatch.setattr(tuned, "training_step", recording)
    quiet_train(tuned_config, tiny_data)
    assert rates == [[pytest.approx(1e-3 * (8 - k) / 8)] * 2 for k in range(8)]


@pytest.mark.parametrize(("batch_size", "processes"), [(53, 1), (1, 1), (13, 2)])
def test_batch_norm_cannot_train_on_a_batch_of_one(
    batch_size, processes, tuned_config, tiny_data, monkeypatch
):
    monkeypatch.setattr(training, "process_count", lambda: processes)
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} .* {54 // processes} images"):
        quiet_train(tuned_config.replace(batch_size=batch_size), tiny_data)


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_resuming_equals_the_uninterrupted_run(stop, tuned_config, tiny_data, tmp_path):
    whole = quiet_train(tuned_config, tiny_data)
    part = quiet_train(tuned_config, tiny_data, max_steps=stop)
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    resumed = quiet_train(tuned_config, tiny_data, resume_from=path)
    assert resumed.history == whole.history
    for network in ("generator", "generator_ema", "discriminator"):
        ours, theirs = (getattr(s, network).state_dict().values() for s in (resumed, whole))
        assert equal(ours, theirs)

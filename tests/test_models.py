"""The networks against sizes counted by hand and layers applied by hand."""

import itertools

import pytest
import torch

import cgan_utils as cg

CONFIG = cg.CGANConfig.original()


def test_layer_sizes_counted_by_hand():
    def shapes(network):
        return [tuple(p.shape) for p in network.parameters()]

    assert shapes(cg.Generator(CONFIG)) == [
        (10, 10),  # embedding: ten classes, ten numbers each
        (256, 110), (256,),  # 100 of noise + 10 of the label
        (256, 256), (256,),
        (784, 256), (784,),
    ]  # fmt: skip
    assert shapes(cg.Discriminator(CONFIG)) == [
        (10, 10),
        (256, 794), (256,),  # 784 pixels + 10 of the label
        (256, 256), (256,),
        (1, 256), (1,),
    ]  # fmt: skip


def test_parameter_counts_by_hand():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert count(cg.Generator(CONFIG)) == 100 + 111 * 256 + 257 * 256 + 257 * 784 == 295_796
    assert count(cg.Discriminator(CONFIG)) == 100 + 795 * 256 + 257 * 256 + 257 == 269_669


def test_generator_equals_its_layers_applied_by_hand():
    generator = cg.Generator(CONFIG)
    table, w1, b1, w2, b2, w3, b3 = generator.parameters()
    z, labels = torch.randn(5, 100), torch.tensor([0, 9, 9, 3, 5])
    hidden = torch.hstack([z, torch.stack([table[y] for y in labels])])
    hidden = (hidden @ w1.T + b1).clamp(min=0)
    hidden = (hidden @ w2.T + b2).clamp(min=0)
    expected = torch.tanh(hidden @ w3.T + b3).reshape(5, 1, 28, 28)
    torch.testing.assert_close(generator(z, labels), expected)


def test_discriminator_equals_its_layers_applied_by_hand():
    discriminator = cg.Discriminator(CONFIG)
    table, w1, b1, w2, b2, w3, b3 = discriminator.parameters()
    images, labels = torch.rand(4, 1, 28, 28) * 2 - 1, torch.tensor([7, 0, 2, 2])
    hidden = torch.hstack([images.reshape(4, 784), torch.stack([table[y] for y in labels])])
    for weight, bias in ((w1, b1), (w2, b2)):
        hidden = hidden @ weight.T + bias
        hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    expected = (hidden @ w3.T + b3)[:, 0]
    torch.testing.assert_close(discriminator(images, labels), expected)


def test_images_stay_in_range_and_can_reach_its_ends():
    generator = cg.Generator(CONFIG)
    for parameter in generator.parameters():
        parameter.data *= 20
    images = generator(torch.randn(64, 100), torch.arange(64) % 10)
    assert images.min() >= -1 and images.max() <= 1
    assert images.min() < -0.99 and images.max() > 0.99


def test_same_z_and_another_label_is_another_image():
    generator = cg.Generator(CONFIG)
    z = torch.randn(1, 100).expand(10, -1)
    images = generator(z, torch.arange(10)).flatten(1)
    assert len(images.unique(dim=0)) == 10


def test_same_image_and_another_label_is_another_verdict():
    discriminator = cg.Discriminator(CONFIG)
    image = torch.rand(1, 1, 28, 28).expand(10, -1, -1, -1)
    assert len(discriminator(image, torch.arange(10)).unique()) == 10


def test_draw_at_a_labels_own_vector_is_that_label():
    generator = cg.Generator(CONFIG)
    z, labels = torch.randn(10, 100), torch.arange(10)
    assert torch.equal(generator.draw(z, generator.embedding.weight), generator(z, labels))


def test_networks_turned_to_double_take_double():
    generator, discriminator = cg.Generator(CONFIG).double(), cg.Discriminator(CONFIG).double()
    images = generator(torch.randn(3, 100).double(), torch.tensor([0, 9, 5]))
    assert images.dtype == torch.float64
    assert discriminator(images, torch.tensor([0, 9, 5])).dtype == torch.float64


def test_other_image_shapes():
    config = CONFIG.replace(image_shape=(3, 4, 6), classes=("a", "b"))
    images = cg.Generator(config)(torch.randn(5, 100), torch.tensor([0, 1, 0, 1, 1]))
    assert images.shape == (5, 3, 4, 6)
    assert cg.Discriminator(config)(images, torch.zeros(5, dtype=torch.long)).shape == (5,)


# -- what the tuned recipe adds

TUNED = cg.CGANConfig.tuned()


def test_tuned_layer_sizes_counted_by_hand():
    def sizes(network):
        return sorted(p.numel() for p in network.parameters())

    norm = [96 * 1024, 1024]  # scale and shift of 512 units, from 64 numbers of z and 32 of y
    hidden = [512 * 512] * 2
    norm_of = [96 * 2 * units for units in (24, 64)] + [2 * units for units in (24, 64)]
    patches = [512 * 24 * 49, 24 * 64, 64 * 8 * 8, 8 * 8, *norm_of]  # 24 features at 7 x 7 places
    assert sizes(cg.Generator(TUNED)) == sorted(
        [10 * 32, (64 + 32) * 512, *hidden, *norm * 3, *patches]  # the shift is the bias
    )
    assert sizes(cg.Discriminator(TUNED)) == sorted(
        [10 * 512, (3 * 784 + 4 * 49) * 512, *hidden, *[512] * 3, 512, 1]
    )


def randomized(network, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=numbers) / 5
    return network


def test_conditional_norm_by_hand():
    generator = randomized(cg.Generator(CONFIG.replace(conditional_norm=True)))
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


def test_conditional_norm_starts_as_plain_batch_norm():
    norm = cg.Generator(TUNED).norms[0]
    h = torch.randn(40, 512) * 3 + 1
    plain = torch.nn.BatchNorm1d(512)(h)
    torch.testing.assert_close(norm(h, torch.randn(40, 96)), plain)


@pytest.mark.parametrize("conditional_norm", [False, True])
def test_shared_patches_by_hand(conditional_norm):
    """Drawn one place after the other, on a canvas with room around the image."""
    config = CONFIG.replace(image_shape=(3, 6, 8), conditional_norm=conditional_norm)
    patches = randomized(cg.SharedPatches(config))
    h, inputs = torch.randn(5, 256), torch.randn(5, 110)

    def activate(x, norm):  # (places, N, units)
        if norm is not None:
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


def test_projection_by_hand():
    discriminator = randomized(cg.Discriminator(CONFIG.replace(projection=True))).double()
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


def test_neighbour_differences_by_hand():
    images = torch.randn(2, 3, 4, 5)
    expected = torch.zeros(2, 6, 4, 5)
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        here = images[n, c, y, x]
        if y < 3:
            expected[n, c, y, x] = 10 * (images[n, c, y + 1, x] - here)
        if x < 4:
            expected[n, 3 + c, y, x] = 10 * (images[n, c, y, x + 1] - here)
    torch.testing.assert_close(cg.neighbour_differences(images), expected)


def test_edge_histogram_by_hand():
    differences = torch.randn(2, 2, 8, 6)  # 6: the last cells are two pixels wide
    expected = torch.zeros(2, 4, 2, 2)
    for n, c, y, x in itertools.product(range(2), range(2), range(2), range(2)):
        cell = differences[n, c, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        expected[n, c, y, x] = 3 * cell[cell > 0].sum() / cell.numel()
        expected[n, 2 + c, y, x] = -3 * cell[cell < 0].sum() / cell.numel()
    torch.testing.assert_close(cg.edge_histogram(differences), expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 28, 28), (1, 2, 1, 3), (4, 1, 1, 1)])
def test_pixel_weights_do_what_weights_of_the_differences_do(shape):
    n, channels, *size = shape
    images = torch.randn(shape).double()
    weights = torch.randn(n, 2 * channels, *size).double()
    by_differences = (weights * cg.neighbour_differences(images)).sum()
    torch.testing.assert_close((cg.pixel_weights(weights) * images).sum(), by_differences)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 6)])
@pytest.mark.parametrize("more", [0, 7])
def test_fine_detail_is_one_layer_on_all_that_it_tells(shape, more):
    config = TUNED.replace(image_shape=shape)
    layer = randomized(cg.FineDetail(config, config.image_size + more)).double()
    images, others = torch.randn(4, *shape).double(), torch.randn(4, more).double()
    differences = cg.neighbour_differences(images)
    told = images, differences, others, cg.edge_histogram(differences)
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
        discriminator = randomized(cg.Discriminator(TUNED))
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
    images = cg.Generator(config)(torch.randn(5, 64), labels)
    assert images.shape == (5, 3, 1, 5)
    assert cg.Discriminator(config)(images, labels).shape == (5,)


@pytest.mark.parametrize("recipe", ["original", "tuned"])
def test_the_networks_fit_together_in_mixed_precision(recipe):
    config = getattr(cg.CGANConfig, recipe)()
    labels = torch.arange(10)
    with torch.autocast("cpu", torch.bfloat16):
        images = cg.Generator(config)(torch.zeros(10, config.latent_dim), labels)
        logits = cg.Discriminator(config)(images, labels)
    assert images.dtype == torch.float32 and logits.shape == (10,)

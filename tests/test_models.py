"""The networks against sizes counted by hand and layers applied by hand."""

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


def test_decoding_a_labels_own_vector_gives_that_label():
    generator = cg.Generator(CONFIG)
    z, labels = torch.randn(10, 100), torch.arange(10)
    assert torch.equal(generator.decode(z, generator.embedding.weight), generator(z, labels))


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


def test_the_networks_fit_together_in_mixed_precision():
    labels = torch.arange(10)
    with torch.autocast("cpu", torch.bfloat16):
        images = cg.Generator(CONFIG)(torch.zeros(10, 100), labels)
        logits = cg.Discriminator(CONFIG)(images, labels)
    assert images.shape == (10, 1, 28, 28) and logits.shape == (10,)

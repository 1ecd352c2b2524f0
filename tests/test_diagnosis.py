"""The signs of a training that goes wrong, on generators whose faults are known."""

import math
import warnings

import pytest
import torch

import cgan_utils as cg
from cgan_utils.diagnosis import warn_of_trouble

CLASSES = ("dark", "bright", "striped")


class Painter(cg.Generator):
    """A generator whose images are flat: of class y and z, brightness `levels[y] + scales[y] z`."""

    def __init__(self, config, levels, scales):
        super().__init__(config)
        self.levels, self.scales = torch.tensor(levels), torch.tensor(scales)

    def forward(self, z, labels):
        brightness = self.levels[labels] + self.scales[labels] * z[:, 0]
        return brightness[:, None, None, None].expand(-1, *self.config.image_shape)


@pytest.fixture
def data():
    """Flat images: 100 of each class, whose brightness alternates around -0.5, 0.0 and 0.5."""
    labels = torch.arange(300) % 3
    middle = torch.tensor([64, 128, 191])[labels] + torch.where(torch.arange(300) % 2 == 0, 20, -20)
    images = middle.to(torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    return cg.LabelledImages(images, labels, CLASSES)


@pytest.fixture
def painter(tiny_config):
    return lambda levels, scales: Painter(tiny_config, levels, scales)


def test_class_spread_is_the_ratio_of_standard_deviations(painter, data):
    real = 20 / 127.5  # each pixel is 20 levels of 255 above or below its mean
    generator = painter([-0.5, 0.0, 0.5], [real, real / 2, 0.0])
    spread = cg.class_spread(generator, data, count=20_000)
    assert spread == pytest.approx({"dark": 1, "bright": 0.5, "striped": 0}, rel=0.03)


def test_class_spread_of_real_images_that_are_all_alike(painter, data):
    same = cg.LabelledImages(data.images[:1].repeat(3, 1, 1, 1), torch.arange(3), CLASSES)
    spread = cg.class_spread(painter([0.0, 0.0, 0.0], [0.0, 0.1, 0.0]), same)
    assert spread == {"dark": 1, "bright": math.inf, "striped": 1}


def test_nearest_centroid_accuracy_by_hand(data):
    levels = torch.tensor([-0.5, -0.3, -0.2, 0.0, 0.6, 0.2])
    images = levels[:, None, None, None].expand(-1, 1, 8, 8)
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    found = cg.nearest_centroid_accuracy(images, labels, data)
    # the borders lie halfway between the means, at -0.25 and 0.25
    assert found == pytest.approx({"dark": 2 / 3, "bright": 1, "striped": 1 / 2})


def warned(painter, tiny_config, data, scales, d_fake, epoch_steps):
    state = cg.TrainingState.create(tiny_config)
    state.generator = painter([-0.5, 0.0, 0.5], scales)
    state.history, state.step = {"d_fake": d_fake}, epoch_steps * len(d_fake)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_trouble(state, data, epoch_steps)
    return [str(warning.message) for warning in caught]


def test_dead_classes_are_named(painter, tiny_config, data):
    (message,) = warned(painter, tiny_config, data, [0.1, 0.01, 0.0], [0.4] * 4, 1000)
    assert "bright, striped" in message and "dark" not in message
    assert not warned(painter, tiny_config, data, [0.1, 0.1, 0.1], [0.4] * 4, 1000)


@pytest.mark.parametrize(
    ("d_fake", "steps"),
    [
        ([0.2] * 5 + [0.04] * 3, 3000),
        ([0.04] * 7 + [0.2], None),  # it recovered
        ([0.2] * 5 + [0.06, 0.04, 0.04], None),  # 2,000 steps, as the original recipe early on
        ([0.2, 0.2, 0.04, 0.04], 2000),  # half of a short run
        ([0.2, 0.2, 0.06, 0.04], None),
    ],
)
def test_a_long_rejection_is_named(d_fake, steps, painter, tiny_config, data):
    messages = warned(painter, tiny_config, data, [0.1, 0.1, 0.1], d_fake, 1000)
    assert len(messages) == (steps is not None)
    assert all(f"for {steps} steps" in message for message in messages)

import json
import math

import numpy as np
import pytest
import torch

import cgan_utils as cg


def test_original_is_the_posts_recipe():
    config = cg.CGANConfig.original()
    assert (config.num_classes, config.embedding_dim, config.image_size) == (10, 10, 28 * 28)
    assert (config.batch_size, config.epochs) == (32, 10)
    assert config.betas == torch.optim.Adam([torch.zeros(1)]).defaults["betas"]  # Adam's default
    assert (config.hidden_dim, config.latent_dim, config.learning_rate) == (256, 100, 2e-4)


def test_replace_changes_only_the_copy():
    config = cg.CGANConfig.original()
    changed = config.replace(epochs=1)
    assert (config.epochs, changed.epochs) == (10, 1)
    assert changed.replace(epochs=10) == config
    with pytest.raises(AttributeError):
        config.epochs = 3


@pytest.mark.parametrize(
    ("count", "epochs"),
    [
        (60_000, 10),  # the post's
        (3_000, 86),  # 86 x 94 steps are the first whole number of epochs with 8,000
        (20, 8_000),
    ],
)
def test_for_data_counts_steps(count, epochs):
    images = torch.zeros(count, 3, 9, 15, dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(count) % 2, ("cat", "dog"))
    config = cg.CGANConfig.original().for_data(data)
    expected = {"classes": ("cat", "dog"), "image_shape": (3, 9, 15), "epochs": epochs}
    if count < 60_000:
        expected["betas"] = (0.5, 0.999)
    assert config == cg.CGANConfig.original().replace(**expected)
    assert cg.CGANConfig.original().replace(epochs=9_000).for_data(data).epochs == 9_000


@pytest.mark.parametrize(
    ("shape", "latent_dim"),
    [((1, 28, 28), 100), ((1, 20, 20), 100), ((1, 8, 8), 16), ((3, 8, 8), 48), ((1, 1, 3), 1)],
)
def test_for_data_makes_z_shorter_for_tiny_images(shape, latent_dim):
    images = torch.zeros(60_000, *shape, dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(60_000) % 2, ("cat", "dog"))
    assert cg.CGANConfig.original().for_data(data).latent_dim == latent_dim


def test_to_dict_and_back():
    config = cg.CGANConfig.original().replace(classes=("a", "b"), betas=(0.0, 0.9))
    assert cg.CGANConfig.from_dict(config.to_dict()) == config


def test_numpys_scalars_become_pythons(tmp_path):
    """Else a checkpoint would need numpy's classes, and could not be loaded."""
    fields = {
        "epochs": np.int64(3),
        "learning_rate": np.float32(0.5),
        "betas": (np.float64(0.5), np.float32(0.25)),
        "image_shape": tuple(np.array([1, 4, 4])),
        "classes": tuple(np.array(["a", "b"])),
    }
    config = cg.CGANConfig.original().replace(**fields)
    plain = dict(epochs=3, learning_rate=0.5, betas=(0.5, 0.25), image_shape=(1, 4, 4))
    expected = cg.CGANConfig.original().replace(**plain, classes=("a", "b"))
    assert config == expected and repr(config) == repr(expected)
    assert json.loads(json.dumps(config.to_dict())) == expected.to_dict()
    state = cg.TrainingState.create(config)
    assert cg.load_checkpoint(cg.save_checkpoint(tmp_path / "x.pt", state)).config == expected
    tuned = cg.CGANConfig.tuned().replace(projection=np.bool_(True), r1_gamma=np.float64(1))
    assert type(tuned.projection) is bool and type(tuned.r1_gamma) is float


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("epochs", True, TypeError),
        ("epochs", np.bool_(True), TypeError),
        ("epochs", np.float64(3), TypeError),
        ("epochs", np.array([3]), TypeError),
        ("batch_size", -1, ValueError),
        ("latent_dim", "100", TypeError),
        ("learning_rate", 0.0, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", math.inf, ValueError),
        ("learning_rate", None, TypeError),
        ("betas", (0.9, 1.0), ValueError),
        ("betas", (0.9,), TypeError),
        ("classes", (), ValueError),
        ("classes", ("a", "a"), ValueError),
        ("classes", "ab", TypeError),
        ("image_shape", (28, 28), TypeError),
        ("image_shape", (1, 0, 28), ValueError),
    ],
)
def test_bad_fields_are_named(field, value, error):
    with pytest.raises(error, match=field):
        cg.CGANConfig.original().replace(**{field: value})


def test_unknown_field_is_named():
    with pytest.raises(TypeError, match=r"learningrate.*learning_rate"):
        cg.CGANConfig.original().replace(learningrate=1e-3)


def test_a_subclass_without_a_recipe_of_its_own_replaces_none():
    before = dict(cg.CGANConfig.recipes)

    class Mine(cg.CGANConfig):
        pass

    assert cg.CGANConfig.recipes == before
    assert type(cg.CGANConfig.original()) is cg.CGANConfig

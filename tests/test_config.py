import math
from pathlib import Path

import pytest
import torch

import cgan_utils as cg
from cgan_utils.config import check_count, check_tensor, random_stream, seeded


def test_original_is_the_posts_recipe():
    config = cg.CGANConfig.original()
    assert (config.num_classes, config.embedding_dim, config.image_size) == (10, 10, 28 * 28)
    assert (config.batch_size, config.epochs) == (32, 10)
    assert config.betas == torch.optim.Adam([torch.zeros(1)]).defaults["betas"]  # Adam's default
    assert (config.hidden_dim, config.latent_dim, config.learning_rate) == (256, 100, 2e-4)


def test_tuned_is_the_same_pair_and_the_same_data():
    original, tuned = cg.CGANConfig.original(), cg.CGANConfig.tuned()
    assert (tuned.classes, tuned.image_shape) == (original.classes, original.image_shape)
    assert tuned.betas[0] == 0 and tuned.mismatch_weight > 0


def test_replace_changes_only_the_copy():
    config = cg.CGANConfig.original()
    changed = config.replace(epochs=1)
    assert (config.epochs, changed.epochs) == (10, 1)
    assert changed.replace(epochs=10) == config
    with pytest.raises(AttributeError):
        config.epochs = 3


def test_to_dict_and_back():
    config = cg.CGANConfig.tuned().replace(classes=("a", "b"), betas=(0.0, 0.9))
    assert cg.CGANConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("epochs", True, TypeError),
        ("batch_size", -1, ValueError),
        ("latent_dim", "100", TypeError),
        ("learning_rate", 0.0, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", math.inf, ValueError),
        ("learning_rate", None, TypeError),
        ("betas", (0.9, 1.0), ValueError),
        ("hidden_layers", 0, ValueError),
        ("ema_decay", 1.0, ValueError),
        ("ema_decay", -0.1, ValueError),
        ("gradient_penalty", -1.0, ValueError),
        ("gradient_penalty", math.inf, ValueError),
        ("gradient_penalty", True, TypeError),
        ("latent_scale", "all", TypeError),
        ("latent_scale", math.nan, ValueError),
        ("projection", 1, TypeError),
        ("conditional_norm", None, TypeError),
        ("mismatch_weight", -1.0, ValueError),
        ("mismatch_weight", 1.0, ValueError),  # without projection
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


def test_folders_lie_beside_the_readme_wherever_one_is(monkeypatch, tmp_path):
    monkeypatch.delenv("CGAN_DATA_DIR", raising=False)
    monkeypatch.delenv("CGAN_RUNS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    clone = Path(__file__).parents[1]
    assert (clone / "README.md").exists()
    assert (cg.data_folder(), cg.runs_folder()) == (clone / "data", clone / "runs")
    monkeypatch.setenv("CGAN_DATA_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("CGAN_RUNS_DIR", str(tmp_path / "r"))
    assert (cg.data_folder(), cg.runs_folder()) == (tmp_path / "d", tmp_path / "r")
    assert (tmp_path / "r").is_dir()  # ready for a picture


def test_choose_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cg.choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cg.choose_device("auto") == torch.device("cpu")
    assert cg.choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "error"), [("gpu", ValueError), ("cuda:99", ValueError), (0, TypeError)]
)
def test_bad_devices_are_named(device, error):
    with pytest.raises(error, match="device"):
        cg.choose_device(device)


def test_random_streams_differ_by_seed_and_by_purpose():
    def draw(*key):
        return tuple(torch.rand(4, generator=random_stream(*key)).tolist())

    keys = [(seed, *purpose) for seed in range(5) for purpose in ((0,), (1,), (2, 0), (2, 1))]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(3, 1) == draw(3, 1)


def test_seeded_numbers_repeat_and_the_callers_go_on():
    before = torch.get_rng_state()
    drawn = []
    for purpose in (1, 1, 2):
        with seeded(5, purpose):
            drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1] == torch.rand(4, generator=random_stream(5, 1)).tolist()
    assert drawn[0] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_length_that_is_given_may_be_0_and_one_that_is_not_may_not():
    check_tensor("x", torch.zeros(0, 3), "float", 0, 3)
    for shape in (("N", 3), (1, 3), (0, 2), (0,)):
        with pytest.raises(ValueError, match=r"x must have shape .*; got \(0, 3\)"):
            check_tensor("x", torch.zeros(0, 3), "float", *shape)


def test_counts_have_two_ends():
    check_count("n", 3, minimum=3, maximum=3)
    with pytest.raises(ValueError, match="n must be at most 3; got 4"):
        check_count("n", 4, maximum=3)

import copy

import numpy as np
import pytest
import torch

import cgan_utils as cg


@pytest.fixture
def generator():
    return cg.TrainingState.create(cg.CGANConfig.original(), seed=0).generator


def test_shape_range_and_count(generator):
    images = cg.sample(generator, [0, 5, 9])
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert not images.requires_grad and images.abs().max() <= 1


def test_equals_the_network_applied_to_the_seeds_noise(generator):
    z = torch.randn(3, 100, generator=torch.Generator().manual_seed(7))
    expected = generator(z, torch.tensor([0, 5, 9]))
    assert torch.equal(cg.sample(generator, [0, 5, 9], seed=7), expected)
    assert torch.equal(cg.sample(generator, [0, 5, 9], latent=z), expected)


@pytest.mark.parametrize(
    "labels",
    [
        ["Sandal", "Bag"],
        [5, 8],
        (5, "Bag"),
        np.array([5, 8]),
        np.array([5, 8], dtype=np.uint8),
        torch.tensor([5, 8]),
        torch.tensor([5, 8], dtype=torch.int32),
    ],
)
def test_labels_in_every_form(labels, generator):
    assert torch.equal(cg.sample(generator, labels), cg.sample(generator, ["Sandal", "Bag"]))


def test_one_label_alone(generator):
    assert torch.equal(cg.sample(generator, "Bag"), cg.sample(generator, [8]))
    assert torch.equal(cg.sample(generator, 8), cg.sample(generator, [8]))


def test_no_labels_no_images(generator):
    assert cg.sample(generator, []).shape == (0, 1, 28, 28)
    assert cg.sample(generator, [], latent=torch.zeros(0, 100)).shape == (0, 1, 28, 28)


def test_a_latent_is_turned_to_the_generators_dtype(generator):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 100)))  # float64
    expected = cg.sample(generator, [0, 5], latent=z.float())
    assert torch.equal(cg.sample(generator, [0, 5], latent=z), expected)
    doubled = cg.sample(generator.double(), [0, 5], latent=z)
    torch.testing.assert_close(doubled, expected)


def test_seeds_that_would_repeat_another_are_refused():
    """torch's generator keeps 32 bits of them."""
    last = 2**32 - 1
    assert not torch.equal(cg.sample_latent(2, 3, seed=last), cg.sample_latent(2, 3, seed=0))
    with pytest.raises(ValueError, match=f"seed must be at most {last}; got {last + 1}"):
        cg.sample_latent(2, 3, seed=last + 1)


def test_an_image_depends_on_its_own_z_and_label_alone(generator):
    labels = torch.arange(100) % 10
    together = cg.sample(generator, labels, seed=3)
    split = cg.sample(generator, labels, seed=3, batch_size=7)
    torch.testing.assert_close(together, split, atol=1e-5, rtol=0)
    z = cg.sample_latent(100, 100, seed=3)
    alone = cg.sample(generator, labels[40:41], latent=z[40:41])
    torch.testing.assert_close(alone, together[40:41], atol=1e-5, rtol=0)


def test_seeds_give_different_images_and_repeat(generator):
    assert torch.equal(cg.sample(generator, [1], seed=1), cg.sample(generator, [1], seed=1))
    assert not torch.equal(cg.sample(generator, [1], seed=1), cg.sample(generator, [1], seed=2))


@pytest.mark.parametrize("labels", [[0, 1], ["Hat"]])
def test_generator_and_global_random_numbers_stay_as_they_were(labels, generator):
    generator.layers[1].train()
    generator.layers[0].eval()
    modes = [module.training for module in generator.modules()]
    before, numbers = copy.deepcopy(generator.state_dict()), torch.get_rng_state()
    try:
        cg.sample(generator, labels)
    except ValueError:
        assert labels == ["Hat"]
    assert [module.training for module in generator.modules()] == modes
    assert all(torch.equal(before[name], t) for name, t in generator.state_dict().items())
    assert torch.equal(numbers, torch.get_rng_state())


def test_sampling_runs_in_eval_mode(generator):
    generator.layers.append(torch.nn.Dropout(0.5))
    generator.train()
    first, second = cg.sample(generator, [1]), cg.sample(generator, [1])
    assert torch.equal(first, second) and (first != 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_generates_the_same_images(generator):
    labels = torch.arange(3000) % 10
    expected = cg.sample(generator, labels, seed=3)
    for given in (labels, labels.cuda()):
        images = cg.sample(copy.deepcopy(generator).cuda(), given, seed=3)
        assert images.is_cuda
        torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["autocast", "inference", "float64"])
def test_the_callers_modes_do_not_change_the_images(mode, generator):
    expected = cg.sample(generator, [1, 2], seed=3), cg.class_grid(generator, columns=1)
    try:
        torch.set_default_dtype(torch.float64 if mode == "float64" else torch.float32)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"),
            torch.inference_mode(mode == "inference"),
        ):
            images = cg.sample(generator, [1, 2], seed=3), cg.class_grid(generator, columns=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))
    assert all(part.dtype == torch.float32 for part in images)


def test_latent_scale_scales_the_noise_that_is_sampled_and_no_other(generator):
    z = cg.sample_latent(20, 100, seed=4)
    scaled = cg.sample(generator, [3] * 20, seed=4, latent_scale=0.5)
    assert torch.equal(scaled, cg.sample(generator, [3] * 20, latent=z / 2))
    torch.testing.assert_close(cg.class_grid(generator, 20, 4, latent_scale=0.5)[60:80], scaled)
    given = cg.sample(generator, [3] * 20, latent=z, latent_scale=0.5)
    assert torch.equal(given, cg.sample(generator, [3] * 20, seed=4))


def test_a_generator_may_have_a_latent_scale_of_its_own(generator):
    expected = cg.sample(generator, [3] * 20, latent_scale=1.5)
    generator.latent_scale = 1.5
    assert torch.equal(cg.sample(generator, [3] * 20), expected)


def test_a_state_is_sampled_from_its_generator():
    state = cg.TrainingState.create(cg.CGANConfig.original(), seed=0)
    assert torch.equal(cg.sample(state, [0, 5]), cg.sample(state.generator, [0, 5]))
    assert torch.equal(cg.class_grid(state, 2), cg.class_grid(state.generator, 2))


def test_class_grid_is_rows_of_classes_and_columns_of_z(generator):
    grid = cg.class_grid(generator, columns=4, seed=2)
    z = cg.sample_latent(4, 100, seed=2)
    assert len(grid) == 40
    row_5 = cg.sample(generator, ["Sandal"] * 4, latent=z)
    torch.testing.assert_close(grid[20:24], row_5, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"generator": torch.nn.Linear(3, 3)}, TypeError),
        ({"labels": ["Hat"]}, ValueError),
        ({"labels": [10]}, ValueError),
        ({"labels": [-1]}, ValueError),
        ({"labels": [0.5]}, TypeError),
        ({"labels": [True]}, TypeError),
        ({"labels": torch.tensor([0.0])}, TypeError),
        ({"labels": torch.tensor([[0]])}, ValueError),
        ({"labels": torch.tensor([3, 10])}, ValueError),
        ({"labels": torch.tensor([3, -1])}, ValueError),
        ({"labels": np.array([1.0])}, TypeError),
        ({"labels": np.array(5)}, ValueError),
        ({"labels": np.array([[5]])}, ValueError),
        ({"labels": None}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"latent": torch.zeros(2, 100)}, ValueError),
        ({"latent": torch.zeros(1, 99)}, ValueError),
        ({"latent": torch.full((1, 100), torch.nan)}, ValueError),
        (
            {"latent": torch.ones(1, 100).double() * 1e300},
            ValueError,
        ),  # float32 has none
        ({"latent": torch.zeros(1, 100).long()}, TypeError),
        ({"latent": [0.0] * 100}, TypeError),
        ({"latent_scale": -1.0}, ValueError),
        ({"latent_scale": "wide"}, TypeError),
        ({"batch_size": 0}, ValueError),
    ],
)
def test_bad_arguments_are_named(change, error, generator, monkeypatch):
    monkeypatch.delattr(cg.Generator, "forward")  # refused before anything is drawn
    with pytest.raises(error, match=next(iter(change))):
        cg.sample(**({"generator": generator, "labels": [0]} | change))

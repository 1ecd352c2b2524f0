"""The generators in the package: small, offline, and still drawing what they drew when stored."""

import socket
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import cgan_utils as cg
from cgan_utils.pretrained import FOLDER

RECIPES = ("original", "tuned")


@pytest.mark.parametrize("recipe", RECIPES)
def test_class_grid_is_the_stored_image(recipe):
    """Stored when the generator was: one row per class, the same ten z in each."""
    stored = plt.imread(Path(__file__).parent / "pretrained_grids" / f"{recipe}.png")  # 0 to 1
    images = torch.from_numpy(stored).view(10, 28, 10, 28).transpose(1, 2).reshape(100, 1, 28, 28)
    drawn = (cg.class_grid(cg.load_pretrained(recipe)) + 1) * 127.5
    assert (drawn - 255 * images).abs().max() < 1  # of 256 grey levels: rounding, nothing more


def test_the_callers_default_dtype_does_not_change_it():
    try:
        torch.set_default_dtype(torch.float64)
        generator = cg.load_pretrained("original")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 for p in generator.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_ready_to_sample_with_the_recipes_config(recipe):
    generator = cg.load_pretrained(recipe)
    assert generator.config == getattr(cg.CGANConfig, recipe)()
    assert not any(module.training for module in generator.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in generator.parameters())
    record = cg.pretrained.load_record(recipe)
    assert record["training_cpu_seconds"] > 0 and record["metrics"]["gan_test"] > 0.5


def test_small_and_without_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    assert sorted(path.stem for path in FOLDER.glob("*.pt")) == sorted(RECIPES)
    for recipe in RECIPES:
        assert (FOLDER / f"{recipe}.pt").stat().st_size <= 4 * 2**20
        cg.load_pretrained(recipe)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"recipe": "best"}, ValueError),
        ({"recipe": "../secrets"}, ValueError),
        ({"recipe": None}, TypeError),
        ({"recipe": "tuned", "device": "moon"}, ValueError),
    ],
)
def test_bad_arguments_are_named(change, error):
    with pytest.raises(error, match=list(change)[-1]):
        cg.load_pretrained(**change)

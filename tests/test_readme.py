"""README's code does what README says.

Every ```python block runs unchanged, in order, in one namespace and an empty folder; so does every
line of the ```sh blocks that calls the package. Only the data are smaller, to save time: there are
64 training images instead of 60,000, `evaluate` trains GAN-train's classifier on 10,000, and a
command trains for 100 steps at most.
"""

import functools
import json
import os
import re
import shlex
import sys
from pathlib import Path

import nbformat
import onnxruntime
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import cgan_utils as cg
from cgan_utils import __main__ as command_line

CLONE = Path(__file__).resolve().parents[1]
README = (CLONE / "README.md").read_text(encoding="utf-8")
RESULTS = CLONE / "benchmarks" / "results"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def few_images(monkeypatch, tmp_path):
    few = cg.load_fashion_mnist("train")[:64]
    for module in (cg, command_line):
        monkeypatch.setattr(module, "load_fashion_mnist", lambda split: few)
    monkeypatch.chdir(tmp_path)


def create_pets():
    for name in [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(20)]:
        path = Path("pets", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(torch.rand(3, 12, 20)).save(path)


@pytest.mark.slow
def test_python_blocks(few_images, monkeypatch):
    monkeypatch.setattr(cg.tuned.TunedConfig, "min_steps", 10)
    first, own_images, *more = blocks("python")
    names = {}
    exec(first, names)
    assert names["images"].shape == (2, 1, 28, 28) and names["images"].abs().max() <= 1
    assert cg.load_checkpoint("runs/mine.pt").epoch == 10

    create_pets()
    exec(own_images, names)
    assert cg.sample(names["state"], "dog").shape == (1, 3, 32, 32)
    for block in more:
        exec(block, names)
    session = onnxruntime.InferenceSession("runs/tuned.onnx")
    z, labels = 1.1 * cg.sample_latent(5, 64, seed=1), torch.arange(5)
    (images,) = session.run(["images"], {"z": z.numpy(), "labels": labels.numpy()})
    expected = cg.sample(names["generator"], labels, seed=1)
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_commands(few_images, monkeypatch, capsys):
    smaller = functools.partial(cg.evaluate, gan_train_images=10_000, progress=False)
    monkeypatch.setattr(command_line, "evaluate", smaller)

    def train(*arguments, **options):
        return cg.train(*arguments, **options | {"max_steps": 100})

    monkeypatch.setattr(command_line, "train", train)
    create_pets()
    lines = "\n".join(blocks("sh")).splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line]
    assert {command[0] for command in commands} == {"make", "python"}
    for python, *arguments in commands:
        if python == "python":
            assert arguments[:2] == ["-m", "cgan_utils"]
            monkeypatch.setattr(sys, "argv", arguments[1:])
            command_line.main()
    assert cg.load_checkpoint("runs/first.pt").epoch == 10
    pets = cg.load_checkpoint("runs/pets.pt").config
    assert (pets.recipe, pets.classes, pets.image_shape) == ("tuned", ("cat", "dog"), (3, 32, 32))
    for figure in ("runs/tuned.png", "runs/pets.png", "runs/images/sandal_000.png"):
        assert Path(figure).read_bytes().startswith(b"\x89PNG")
    assert len(list(Path("runs/images").iterdir())) == 2 * 8
    report = json.loads(Path("runs/first.json").read_text(encoding="utf-8"))
    assert report["gan_test"] < report["real"]["gan_test"]
    assert "GAN-test" in capsys.readouterr().out


@pytest.mark.slow
def test_first_cells_run_after_the_line_for_colab(tmp_path, monkeypatch):
    """With a git that links this clone instead of fetching it, and a pip that only takes note."""
    (line,) = re.findall(r"`(import os;.*)`", README)
    for name, script in {
        "git": f'test "$1 $2 $3" = "clone -q URL" && ln -s "{CLONE}" "$4"',
        "pip": 'test "$1 $2" = "install -q" && test -f "$3/pyproject.toml" && touch installed',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    exec(line)
    assert (tmp_path / "installed").exists()
    for path in sorted((CLONE / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        exec(next(cell.source for cell in cells if cell.cell_type == "code"), {})


def test_gan_train_by_the_number_of_images():
    text = (RESULTS / "gan_train_by_size.json").read_text(encoding="utf-8")
    accuracy = json.loads(text)["gan_train"]
    said = re.search(r"classifier trained on (.*?) images .*?reaches (.*?)% of", README, re.DOTALL)
    sizes, shares = (re.findall(r"[\d,.]*\d", part) for part in said.groups())
    assert sizes == [f"{int(size):,}" for size in accuracy]
    assert shares == [f"{100 * a['generated'] / a['real']:.1f}" for a in accuracy.values()]

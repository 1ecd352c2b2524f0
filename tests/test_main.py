"""The command line does what the functions do."""

import subprocess
import sys

import pytest
import torch

import cgan_utils as cg
from cgan_utils import __main__ as command_line


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cgan_utils", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.process
def test_train_resume_and_sample(tmp_path):
    path = tmp_path / "new" / "run.pt"
    common = ("train", "--device", "cpu", "--seed", 3, "--hidden-dim", 32, "--output", path)
    assert run(*common, "--max-steps", 4).returncode == 0
    more = run(*common, "--max-steps", 7, "--resume")
    assert f"checkpoint: {path}" in more.stdout

    config = cg.CGANConfig.original().replace(hidden_dim=32)
    data = cg.load_fashion_mnist("train")
    expected = cg.train(config, data, device="cpu", seed=3, max_steps=7, progress=False)
    state = cg.load_checkpoint(path)
    assert (state.config, state.step) == (config, 7)
    for a, b in zip(state.generator.parameters(), expected.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b)

    image = tmp_path / "grid.png"
    assert run("sample", path, "--output", image, "--columns", 2).returncode == 0
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
def test_unknown_flags_and_bad_values_are_refused(tmp_path):
    unknown = run("train", "--epoch-count", 3)
    assert unknown.returncode != 0 and "epoch-count" in unknown.stderr + unknown.stdout
    bad = run("train", "--epochs", 0, "--output", tmp_path / "x.pt")
    assert bad.returncode != 0 and "epochs must be at least 1; got 0" in bad.stderr + bad.stdout
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("name", ["mine", "mine.v1"])
def test_an_output_that_would_share_its_folder_is_refused(name, tmp_path):
    with pytest.raises(SystemExit, match=rf"output must end in \.pt, .*; got .*{name}$"):
        command_line.train_command("original")(output=tmp_path / name, max_steps=1)
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_cannot_be_loaded_are_neither_ignored_nor_removed(tmp_path):
    old = tmp_path / "mine" / "step-000000009.pt"
    old.parent.mkdir()
    old.write_text("another version's")
    with pytest.raises(SystemExit, match=rf"no checkpoint in {old.parent} can be loaded"):
        command_line.train_command("original")(output=tmp_path / "mine.pt", resume=True)
    assert old.exists()


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ("train --epochs 3", "original"),
        ("train --recipe tuned", "tuned"),
        ("train --seed 1 --recipe=tuned", "tuned"),
        ("train --recipe best", "original"),  # for the parser to refuse
    ],
)
def test_the_recipe_decides_which_flags_there_are(flags, recipe):
    assert command_line.chosen_recipe(flags.split()) == recipe


def test_each_recipe_has_its_own_flags(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(command_line, "run_training", lambda *parts: trained.append(parts[:2]))
    monkeypatch.setenv("CGAN_RUNS_DIR", str(tmp_path))
    for flags in ("--epochs 3", "--recipe tuned --r1-gamma 0.5 --no-edge-features"):
        monkeypatch.setattr(sys, "argv", ["cgan_utils", "train", *flags.split()])
        command_line.main()
    assert trained == [
        (cg.CGANConfig.original().replace(epochs=3), tmp_path / "original.pt"),
        (cg.CGANConfig.tuned().replace(r1_gamma=0.5, edge_features=False), tmp_path / "tuned.pt"),
    ]
    monkeypatch.setattr(sys, "argv", ["cgan_utils", "train", "--r1-gamma", "0.5"])
    with pytest.raises(SystemExit):
        command_line.main()

"""Folders, devices, files and random numbers."""

import os
from pathlib import Path

import pytest
import torch

import cgan_utils as cg
from cgan_utils._runtime import make_rng, seeded, write_atomically


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
    assert (tmp_path / "r").is_dir()  # ready for a image


def test_a_folder_that_cannot_be_made_names_the_variable_for_another(monkeypatch, tmp_path):
    """A file in place of a folder fails like a checkout that cannot be written to."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CGAN_RUNS_DIR", str(tmp_path / "file" / "runs"))
    with pytest.raises(OSError, match="set CGAN_RUNS_DIR to a folder that you can write to"):
        cg.runs_folder()


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


def test_make_rngs_differ_by_seed_and_by_purpose():
    def draw(*key):
        return tuple(torch.rand(4, generator=make_rng(*key)).tolist())

    keys = [(seed, *purpose) for seed in range(5) for purpose in ((0,), (1,), (2, 0), (2, 1))]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(3, 1) == draw(3, 1)


def test_seeded_numbers_repeat_and_the_callers_go_on():
    before = torch.get_rng_state()
    drawn = []
    for purpose in (1, 1, 2):
        with seeded(5, purpose):
            drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1] == torch.rand(4, generator=make_rng(5, 1)).tolist()
    assert drawn[0] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    path = write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert done == ["fsync", "replace"] and path.read_bytes() == b"whole"


def test_a_write_that_fails_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*/mine'$"):
        write_atomically(tmp_path / "mine", lambda file: file.write(b"half"))
    assert not list(tmp_path.iterdir())

import os

import pytest
import torch

import cgan_utils as cg
from cgan_utils import checkpoints


@pytest.fixture
def state(tiny_config, tiny_data):
    return cg.train(tiny_config, tiny_data, device="cpu", progress=False, max_steps=6)


def test_everything_comes_back(state, tmp_path):
    loaded = cg.load_checkpoint(cg.save_checkpoint(tmp_path / "new" / "state.pt", state))
    assert (loaded.config, loaded.seed, loaded.step) == (state.config, state.seed, 6)
    assert loaded.history == state.history
    assert torch.equal(loaded.noise.get_state(), state.noise.get_state())
    for part in ("generator", "discriminator"):
        theirs = getattr(loaded, part).state_dict()
        for name, tensor in getattr(state, part).state_dict().items():
            assert torch.equal(theirs[name], tensor)
        moments = getattr(loaded, f"{part}_optimizer").state_dict()["state"]
        for key, entry in getattr(state, f"{part}_optimizer").state_dict()["state"].items():
            assert all(torch.equal(moments[key][name], value) for name, value in entry.items())


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_an_interrupted_save_leaves_the_previous_file(moment, state, tmp_path, monkeypatch):
    path = cg.save_checkpoint(tmp_path / "state.pt", state)
    before = path.read_bytes()

    def cut(*args, **kwargs):
        if moment == "while writing":
            args[1].write(b"half a checkpoint")
        raise KeyboardInterrupt

    target = (torch, "save") if moment == "while writing" else (os, "replace")
    monkeypatch.setattr(*target, cut)
    with pytest.raises(KeyboardInterrupt):
        cg.save_checkpoint(path, state)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.pt"]  # and nothing half-written


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def write_foreign(path, kind, state):
    cg.save_checkpoint(path, state)
    content = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "another program's":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "a future version":
        saved = torch.load(path)
        torch.save(saved | {"format_version": checkpoints.FORMAT_VERSION + 1}, path)
    elif kind == "missing a network":
        saved = torch.load(path)
        del saved["discriminator"]
        torch.save(saved, path)
    elif kind == "malicious":
        torch.save({"format_version": Attack()}, path)


@pytest.mark.parametrize(
    "kind",
    ["empty", "truncated", "text", "another program's", "a future version", "missing a network",
     "malicious"],
)  # fmt: skip
def test_damaged_and_foreign_files_give_one_clear_error(kind, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    write_foreign(path, kind, state)
    with pytest.raises(ValueError, match=r"state\.pt is not a whole cgan_utils checkpoint"):
        cg.load_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        cg.load_checkpoint(tmp_path / "none.pt")

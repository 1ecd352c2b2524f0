import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cgan_utils as cg
from cgan_utils import checkpoints
from cgan_utils.checkpoints import latest_checkpoint


@pytest.fixture
def state(tiny_config, tiny_data):
    return cg.train(tiny_config, tiny_data, device="cpu", progress=False, max_steps=6)


def test_everything_comes_back(state, tmp_path):
    loaded = cg.load_checkpoint(cg.save_checkpoint(tmp_path / "new" / "state.pt", state))
    assert everything(loaded) == everything(state)
    assert torch.equal(loaded.stats, state.stats)
    assert (loaded.engine, loaded.generator_ema) == ("eager", None)


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
    with pytest.raises(ValueError, match=r"state\.pt is not a whole cgan_utils checkpoint \(.+\)$"):
        cg.load_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        cg.load_checkpoint(tmp_path / "none.pt")


def test_the_last_two_are_kept(tiny_config, tiny_data, tmp_path):
    config = tiny_config.replace(epochs=4)
    cg.train(config, tiny_data, device="cpu", progress=False, checkpoint_folder=tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["step-000000012.pt", "step-000000016.pt"]
    assert latest_checkpoint(tmp_path) == tmp_path / names[1]


def test_only_numbered_checkpoints_are_counted_and_removed(state, tmp_path):
    mine = cg.save_checkpoint(tmp_path / "mine.pt", state)
    for step in range(3):
        cg.save_checkpoint(tmp_path / f"step-{step}.pt", state, keep_last=1)
    assert sorted(os.listdir(tmp_path)) == ["mine.pt", "step-2.pt"] and mine.exists()


def test_a_later_file_takes_the_place_of_an_earlier_one_of_more_steps(state, tmp_path):
    for step in (20, 16, 4):
        cg.save_checkpoint(tmp_path / f"step-{step:09d}.pt", state, keep_last=2)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000000004.pt"
    assert sorted(os.listdir(tmp_path)) == ["step-000000004.pt", "step-000000016.pt"]


def test_the_latest_passes_over_damaged_files(state, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    older = cg.save_checkpoint(tmp_path / "step-000000003.pt", state)
    (tmp_path / "step-000000004.pt").write_bytes(older.read_bytes()[:1000])
    assert latest_checkpoint(tmp_path) == older


@pytest.mark.process
def test_disk_full_leaves_the_previous_file_and_an_error(state, tmp_path):
    """A real limit on the size of files, in a process of its own."""
    path = cg.save_checkpoint(tmp_path / "state.pt", state)
    before = path.read_bytes()
    code = f"""if True:
        import resource, signal
        import cgan_utils as cg
        state = cg.load_checkpoint({str(path)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        cg.save_checkpoint({str(path)!r}, state)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last_line = run.stderr.splitlines()[-1]
    assert run.returncode != 0 and last_line == f"OSError: [Errno 27] File too large: '{path}'"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.pt"]


@pytest.mark.parametrize("folder", ["/sys", "a file"])
def test_a_folder_that_cannot_be_written_to_is_an_error_and_nothing_else(folder, state, tmp_path):
    """/sys refuses new files even to root; a file in place of a folder does so everywhere."""
    if folder == "a file":
        folder = tmp_path / "file"
        folder.write_text("precious")
    with pytest.raises(OSError):
        cg.save_checkpoint(Path(folder) / "state.pt", state)
    assert [path.read_text() for path in tmp_path.iterdir()] in ([], ["precious"])


def everything(state):
    """All that a state holds, as plain values."""
    parts = state.generator, state.discriminator
    weights = [p.tolist() for part in parts for p in part.parameters()]
    optimizers = state.generator_optimizer, state.discriminator_optimizer
    moments = [
        value.tolist()
        for optimizer in optimizers
        for entry in optimizer.state_dict()["state"].values()
        for value in entry.values()
    ]
    noise = state.rng.get_state().tolist()
    return state.config, state.seed, state.step, state.history, noise, weights, moments


def test_every_flipped_byte_is_noticed_or_harmless(state, tmp_path):
    """Damage never gives another state: the file is refused, or holds what was saved."""
    path = cg.save_checkpoint(tmp_path / "state.pt", state)
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 60):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
        )
        try:
            loaded = cg.load_checkpoint(path)
        except ValueError:
            continue
        assert everything(loaded) == everything(state), position


KILLED = """
import os, random, signal, sys, time
import torch
import cgan_utils as cg
from cgan_utils.checkpoints import latest_checkpoint

torch.set_num_threads(1)  # no pool of threads that a fork would lose
folder, kills = sys.argv[1], int(sys.argv[2])
config = cg.CGANConfig(
    classes=("a", "b"), image_shape=(1, 4, 4), latent_dim=4, hidden_dim=64, batch_size=8, epochs=40
)
numbers = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=numbers)
data = cg.LabelledImages(images, torch.arange(40) % 2, config.classes)

def train(folder):
    start = latest_checkpoint(folder)
    options = dict(checkpoint_folder=folder, progress=False)
    # eager, which starts at once: half of the time to live would go into recording
    return cg.train(config, data, "cpu", "eager", resume_from=start, **options)

random.seed(0)
steps = []
for kill in range(kills):
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    time.sleep(random.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    latest = latest_checkpoint(folder)
    steps.append(cg.load_checkpoint(latest).step if latest else 0)
assert steps == sorted(steps), steps  # nothing that was saved is lost
interrupted, whole = train(folder), train(folder + "-whole")
for part in ("generator", "discriminator"):
    for a, b in zip(getattr(interrupted, part).parameters(), getattr(whole, part).parameters()):
        assert torch.equal(a, b)
assert interrupted.history == whole.history
print(len(set(steps)), steps[-1])
"""


@pytest.mark.process
def test_fifty_kills_lose_nothing_and_change_nothing(tmp_path):
    """SIGKILL at random moments of training and saving, each time resumed; then to the end."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "50"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    different, last = map(int, run.stdout.split())
    assert different >= 2 and last > 0  # some were hit while under way

"""Training states on disk.

A checkpoint is one file with everything that training needs to go on: configuration, networks,
optimisers, the state of the random numbers, the step counter and the history.
"""

import contextlib
import logging
import os
import zipfile
from pathlib import Path

import torch

from ._checks import check_count, check_type
from ._runtime import choose_device, default_modes, locked, make_writable, write_atomically
from .config import CGANConfig
from .state import TrainingState

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4

_PARTS = (
    "generator",
    "generator_ema",
    "discriminator",
    "generator_optimizer",
    "discriminator_optimizer",
)


def save_checkpoint(
    path: str | os.PathLike, state: TrainingState, keep_last: int | None = None
) -> Path:
    """Write a `TrainingState` to `path`, whole or not at all; return the path.

    keep_last: remove all but the last n files named step-*.pt from the folder afterwards.
    """
    check_type("path", path, str, os.PathLike)
    check_type("state", state, TrainingState)
    if keep_last is not None:
        check_count("keep_last", keep_last)
    contents = {
        "format_version": FORMAT_VERSION,
        "config": state.config.to_dict(),
        "seed": state.seed,
        "step": state.step,
        "stats": state.stats,
        "history": state.history,
        "engine": state.engine,
        "rng": state.rng.get_state(),
        "device": state.device.type,
        **{name: part.state_dict() for name, part in _parts(state).items()},
    }
    path = write_atomically(path, lambda file: torch.save(contents, file))
    if keep_last is not None:
        cut_off = path.parent.glob(".step-*.pt.*")
        for old in [*list_checkpoints(path.parent)[keep_last:], *cut_off]:
            old.unlink(missing_ok=True)
    return path


def checkpoint_path(folder, state):
    """The name of one of several checkpoints in a folder: step-000000012.pt."""
    return Path(folder) / f"step-{state.step:09d}.pt"


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the latest whole checkpoint named step-*.pt in `folder`, or None.

    Damaged files are passed over; `train` keeps two for that reason.
    """
    check_type("folder", folder, str, os.PathLike)
    for path in list_checkpoints(Path(folder)):
        try:
            load_checkpoint(path)
            return path
        except ValueError as damage:
            logger.warning("passed over: %s", damage)
    return None


def list_checkpoints(folder):
    """Return a folder's checkpoints, the last written first.

    The time decides and not the step: a new run counts before an older, longer one.
    """

    def written(path):
        return path.stat().st_mtime_ns, path.name

    return sorted(folder.glob("step-*.pt"), key=written, reverse=True)


@contextlib.contextmanager
def claimed_folder(checkpoint_folder, resume_from):
    """Keep a checkpoint folder, if any, for one training; raise ValueError where that cannot be.

    It can be created or written to, nobody else is training into it, and the checkpoints in it, if
    any, are those of the training that goes on.
    """
    if checkpoint_folder is None:
        yield
        return
    check_type("checkpoint_folder", checkpoint_folder, str, os.PathLike)
    folder = Path(checkpoint_folder)
    with contextlib.ExitStack() as stack:
        try:
            make_writable(folder)
            stack.enter_context(locked(folder))
        except BlockingIOError as error:
            raise ValueError(
                f"checkpoint_folder: {error}; wait for its end, or choose another folder"
            ) from error
        except OSError as error:
            raise ValueError(
                f"checkpoint_folder must be one that can be written to; got {folder} ({error})"
            ) from error
        earlier = list_checkpoints(folder)
        if earlier and not (resume_from and folder.samefile(Path(resume_from).parent)):
            raise ValueError(
                f"checkpoint_folder: {folder} has the checkpoints of an earlier training; go on "
                f"with resume_from={str(earlier[0])!r}, or choose another folder"
            )
        yield


@default_modes()
def load_checkpoint(path: str | os.PathLike, device: str | torch.device = "cpu") -> TrainingState:
    """Read a `TrainingState` back; it continues exactly where it was saved.

    Its networks are in eval mode, ready to generate images; `train` goes on in train mode, and
    before a `training_step` by hand `state.generator.train()` is needed, for batch norm.

    Only tensors and plain values are unpickled (`weights_only=True`), so a file from a stranger
    cannot run code. Raises FileNotFoundError if there is no such file, ValueError if it is damaged
    or no checkpoint of this package.
    """
    check_type("path", path, str, os.PathLike)
    path = Path(path)
    device = choose_device(device)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        contents = torch.load(path, map_location=device, weights_only=True)
        version = contents["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}; this package reads {FORMAT_VERSION}")
        config = CGANConfig.from_dict(contents["config"])
        state = TrainingState.create(config, contents["seed"], device)
        for name, part in _parts(state).items():
            part.load_state_dict(contents[name])
        for network in (state.generator, state.discriminator):
            network.eval()
        for name in ("step", "stats", "history", "engine"):
            setattr(state, name, contents[name])
        if contents["device"] == state.device.type:  # another device samples other noise anyway
            state.rng.set_state(contents["rng"].cpu())
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"path: {path} is not a whole cgan_utils checkpoint ({reason})") from error
    return state


def _parts(state):
    """The networks and optimisers by name, without a moving average that is not there."""
    parts = {name: getattr(state, name) for name in _PARTS}
    return {name: part for name, part in parts.items() if part is not None}

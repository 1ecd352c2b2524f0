"""Where a run takes place: folders, files, progress, device, modes, random seeds, interrupts."""

import contextlib
import os
import platform
import signal
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm


def project_folder():
    """The README's folder in a clone; for a package installed elsewhere, the working folder."""
    clone = Path(__file__).resolve().parents[1]
    return clone if (clone / "pyproject.toml").exists() else Path.cwd()


def data_folder() -> Path:
    """Return the dataset's folder: CGAN_DATA_DIR if set, else data/ beside the README."""
    return Path(os.environ.get("CGAN_DATA_DIR") or project_folder() / "data")


def runs_folder() -> Path:
    """Return the folder of checkpoints and images: CGAN_RUNS_DIR, else runs/ beside the README.

    The folder is created if it does not exist; raises OSError if it cannot be.
    """
    folder = Path(os.environ.get("CGAN_RUNS_DIR") or project_folder() / "runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "set CGAN_RUNS_DIR to a folder that you can write to"
        raise OSError(error.errno, f"{error.strerror}; {advice}", str(folder)) from error
    return folder


def make_writable(folder):
    """Create the folder if need be; raise OSError unless files can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def locked(folder):
    """Keep a folder for oneself for a while; raise BlockingIOError, naming who has it, if one does.

    The operating system holds the lock: it ends with the process, however that ends.
    """
    holder = folder / ".lock-holder"
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise BlockingIOError(f"{folder} is in use by {name}") from None
    with lock:
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def progress_bar(iterable=None, *, progress=True, **options):
    """Return a bar that is gone at its end; on stdout, as a notebook shows stderr as an alarm."""
    return tqdm(iterable, disable=not progress, file=sys.stdout, leave=False, **options)


def write_atomically(path, write):
    """Call `write(file)` on a binary file that appears at `path` whole or not at all.

    The file is written beside its final name, flushed to the disk, then renamed, so that an
    interruption at any moment leaves the previous file or the new one. Missing folders are
    created; returns the path. An OSError, such as that of a full disk, names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides it
        if getattr(cause, "errno", None) is not None:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device: "auto" is CUDA if there is one, else the CPU; other names are checked.

    Raises TypeError or ValueError for a name torch does not know or a device that is not there.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'auto', 'cpu' or 'cuda'; got {device!r}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # without a list of all backends
        raise ValueError(
            f"device must be 'auto', 'cpu' or a device this machine has; got {device!r} ({reason})"
        ) from error


@contextlib.contextmanager
def default_modes():
    """Leave the caller's modes of PyTorch for a while: autocast, inference, no_grad, float64.

    What is computed within has the same bits in all of them, and networks can be trained later.
    """
    accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),  # ends no_grad too
            torch.autocast("cpu", enabled=False),
            torch.autocast(accelerator.type, enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def make_rng(seed, *purpose, device="cpu"):
    """Return a torch.Generator that is independent for each seed and purpose (whole numbers).

    torch's CPU generator keeps only 32 bits of a seed, so seeds cannot simply be added up;
    numpy's SeedSequence mixes them.
    """
    mixed = np.random.SeedSequence([seed, *purpose]).generate_state(1).item()
    return torch.Generator(device).manual_seed(mixed)


@contextlib.contextmanager
def seeded(seed, *purpose):
    """Replace the CPU's global random state by that of `make_rng` for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(make_rng(seed, *purpose).get_state())
        yield


@contextlib.contextmanager
def deferred_interrupts():
    """Yield a list that records the first Ctrl-C; a second one raises KeyboardInterrupt.

    A program that handles Ctrl-C in its own way keeps its handler.
    """
    noted = []

    def note(number, _):
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # others get no signals
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

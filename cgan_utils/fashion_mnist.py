"""The four files of FashionMNIST: where they come from, and how they are checked.

They are taken from the first source that has them. Whatever the source, a file is used only if its
SHA-256 is right.
"""

import contextlib
import gzip
import hashlib
import logging
import subprocess
import sys
import tempfile
import zlib
from functools import partial
from pathlib import Path

from ._runtime import make_writable, write_atomically

logger = logging.getLogger(__name__)

# Hashes of the decompressed files, because each source compresses them in its own way.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# MNIST's files have the same names. FashionMNIST has 6000 or 1000 images of each class.
MNIST_IMAGES_PER_CLASS = {
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}

PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu
PACKAGED_FOLDER = "usr/share/datasets/fashion-mnist"
SYSTEM_FOLDER = Path("/", PACKAGED_FOLDER)
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # torchvision's own
)
SERVER_TIMEOUT = 5  # seconds that a server may send nothing
COMMAND_TIMEOUT = 300  # seconds that an external command may take in all


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the four files by name, decompressed, and keep them in `folder`.

    Files that are not in the folder yet come from Debian's system copy, torchvision's downloader or
    apt-get, in this order. Raises RuntimeError, which says what was tried and what to do, if no
    source has them, if the folder holds MNIST's files, or if it cannot be written to.
    """
    try:
        files = _read(folder)
        logger.info("FashionMNIST: data folder %s", folder)
    except _IsMNIST as problem:
        raise RuntimeError(
            f"{folder} holds another dataset: {problem}. Both use the same file names. "
            f"Move these files away, or set CGAN_DATA_DIR to another folder."
        ) from None
    except _Unusable as problem:
        with _write_errors_explained(folder):  # before a download, not after it
            make_writable(folder)
        files = _fetch(folder, problem)
    with _write_errors_explained(folder):
        for name, content in files.items():
            path = folder / name
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, lambda file, content=content: file.write(content))
    return files


class _Unusable(Exception):
    """A source cannot be used; the message says why."""


class _IsMNIST(_Unusable):
    """A source holds MNIST."""


def _fetch(folder, problem):
    """Return the files from the first source that has them; `folder` has this problem."""
    reasons = [f"data folder {folder}: {problem}"]
    sources = {
        f"system copy {SYSTEM_FOLDER}": lambda scratch: SYSTEM_FOLDER,
        **{f"download from {mirror}": partial(_download, mirror) for mirror in MIRRORS},
        f"apt-get download {PACKAGE}": _download_package,
    }
    for source, get_folder in sources.items():
        with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as scratch:
            try:
                files = _read(get_folder(Path(scratch)))
                logger.info("FashionMNIST: %s", source)
                return files
            except _Unusable as reason:
                reasons.append(f"{source}: {reason}")
    raise RuntimeError(
        "FashionMNIST was not found. Tried, in this order:\n"
        + "".join(f"  - {reason}\n" for reason in reasons)
        + f"What you can do: put {', '.join(SHA256)} (or the same names with .gz), from "
        f"https://github.com/zalandoresearch/fashion-mnist, into {folder}; or set CGAN_DATA_DIR "
        f"to a folder that has them under FashionMNIST/raw; or, on Debian and Ubuntu, "
        f"install the package {PACKAGE}."
    )


def _download(mirror, scratch):
    """Run torchvision's downloader and return the folder with the files.

    It runs in a process of its own, because it prints and has no time limit.
    """
    _run(sys.executable, "-c", DOWNLOADER, mirror, SERVER_TIMEOUT, cwd=scratch)
    return scratch / "FashionMNIST" / "raw"


DOWNLOADER = """
import socket, sys, urllib.request
mirror, seconds = sys.argv[1:]
socket.setdefaulttimeout(float(seconds))
urllib.request.urlopen(mirror + "t10k-labels-idx1-ubyte.gz").close()  # before the slow import
from torchvision.datasets import FashionMNIST
FashionMNIST.mirrors = [mirror]
FashionMNIST.resources = [(name, None) for name, md5 in FashionMNIST.resources]  # we have SHA-256
FashionMNIST(".", download=True)
"""


def _download_package(scratch):
    """Download and unpack Debian's package and return the folder with the files.

    Installing it would need root. apt-get gets package lists of its own, because a fresh machine
    has none.
    """
    for folder in ("state", "cache"):
        (scratch / folder).mkdir()
    options = [f"-oDir::State={scratch}/state", f"-oDir::Cache={scratch}/cache"]
    options += ["-oAPT::Sandbox::User=root", f"-oAcquire::http::Timeout={SERVER_TIMEOUT}"]
    with contextlib.suppress(_Unusable):  # one broken archive in the list spoils only itself
        _run("apt-get", *options, "update", cwd=scratch)
    _run("apt-get", *options, "download", PACKAGE, cwd=scratch)
    _run("dpkg-deb", "-x", *scratch.glob("*.deb"), ".", cwd=scratch)
    return scratch / PACKAGED_FOLDER


def _run(*command, cwd):
    """Run a command without showing its output; if it fails, raise with its last line."""
    command = [str(word) for word in command]
    try:
        run = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT,
        )
    except FileNotFoundError:
        raise _Unusable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise _Unusable(f"{command[0]} took more than {COMMAND_TIMEOUT} seconds") from None
    if run.returncode != 0:
        lines = run.stdout.decode(errors="replace").split("\n")
        raise _Unusable(next((line for line in reversed(lines) if line.strip()), "failed"))


def _read(folder):
    """Return the four files in `folder`, compressed there or not, after checking them."""
    files, problems = {}, []
    for name in SHA256:
        try:
            files[name] = _read_file(folder, name)
        except _IsMNIST:
            raise
        except _Unusable as problem:
            problems.append(str(problem))
    if problems:
        raise _Unusable("; ".join(problems))
    return files


def _read_file(folder, name):
    plain, compressed = folder / name, folder / f"{name}.gz"
    try:
        content = plain.read_bytes() if plain.exists() else gzip.decompress(compressed.read_bytes())
    except FileNotFoundError:
        raise _Unusable(f"{name} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _Unusable(f"{name} cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() == SHA256[name]:
        return content
    if "labels" in name and _is_mnist(content):
        raise _IsMNIST(f"{name} is MNIST's file, not FashionMNIST's")
    raise _Unusable(f"{name} is damaged or another dataset's (wrong SHA-256)")


def _is_mnist(label_file):
    counts = tuple(label_file.count(label, 8) for label in range(10))  # after the header
    return counts in MNIST_IMAGES_PER_CLASS


@contextlib.contextmanager
def _write_errors_explained(folder):
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"Cannot write to the data folder {folder} ({error}). "
            f"Set CGAN_DATA_DIR to a folder that you can write to."
        ) from error

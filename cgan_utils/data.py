"""Labelled images as two tensors, and FashionMNIST (Xiao et al. 2017, arXiv 1708.07747) as one.

`load_fashion_mnist` takes the dataset's four files from the first source that has them; whatever
the source, only their SHA-256 decides whether they are used.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zlib
from functools import partial
from pathlib import Path

import torch

from .config import (
    FASHION_MNIST_CLASSES,
    check_range,
    check_tensor,
    check_tuple,
    check_type,
    data_folder,
    kind,
    make_writable,
    write_atomically,
)

logger = logging.getLogger(__name__)

# Of the decompressed files: each source packs them in its own way, the content is the same.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FILE_PREFIX = {"train": "train", "test": "t10k"}  # of each split

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
SILENCE_SECONDS = 5  # without a byte from a server, after which it is given up
STEP_SECONDS = 300  # for one external command, whatever it does


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and, for each, the number of its class.

    images: uint8 (N, C, H, W); labels: int64 (N,), each in range(len(classes)); classes: names.
    `data[indices]` is the LabelledImages of a slice, a boolean mask or several indices.

    Raises TypeError or ValueError, naming the argument, if they do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __post_init__(self):
        check_tensor("images", self.images, torch.uint8, "N", "C", "H", "W")
        check_tensor("labels", self.labels, torch.int64, "N")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"labels must be one per image; got {len(self.labels)} labels "
                f"for {len(self.images)} images"
            )
        check_tuple("classes", self.classes, str)
        check_range("labels", self.labels, len(self.classes))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return LabelledImages(self.images[indices], self.labels[indices], self.classes)


def normalize(images):
    """uint8 images of any shape -> float32 of the same shape in [-1, 1], 0 -> -1 and 255 -> 1.

    Bit for bit what torchvision's ToTensor and Normalize(0.5, 0.5) give. Raises TypeError for
    anything but a uint8 tensor: images normalised twice would look almost right.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images must be a uint8 tensor; got a {kind(images)}")
    return (images.float() / 255 - 0.5) / 0.5


def load_fashion_mnist(split="train", folder=None):
    """FashionMNIST's 60,000 training or 10,000 test images -> LabelledImages, (N, 1, 28, 28).

    split: "train" or "test". folder: where the files lie or will lie, `data_folder()` if None; they
    go where `torchvision.datasets.FashionMNIST(root=folder)` looks for them. If they are not there
    yet, they come from Debian's system copy, torchvision's downloader or apt-get, in this order.

    Raises ValueError for another split, TypeError for a folder that is no path, and RuntimeError if
    no source has the files, if the folder holds MNIST's, or if it cannot be written to; its message
    says what was tried and what to do.
    """
    if not isinstance(split, str) or split not in FILE_PREFIX:
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
    folder = data_folder() if folder is None else folder
    check_type("folder", folder, str, os.PathLike)
    files = _files(Path(folder).expanduser() / "FashionMNIST" / "raw")
    images = _parse_idx(files[f"{FILE_PREFIX[split]}-images-idx3-ubyte"], header_size=16)
    labels = _parse_idx(files[f"{FILE_PREFIX[split]}-labels-idx1-ubyte"], header_size=8)
    return LabelledImages(images.view(-1, 1, 28, 28), labels.long(), FASHION_MNIST_CLASSES)


class _Unusable(Exception):
    """Why a source cannot be used."""


class _IsMNIST(_Unusable):
    """It holds MNIST."""


def _files(folder):
    """The four files, {name: bytes}, from `folder`, which has them from then on."""
    try:
        files = _read(folder)
        logger.info("FashionMNIST: data folder %s", folder)
    except _IsMNIST as fault:
        raise RuntimeError(
            f"{folder} holds another dataset: {fault}. Both use the same file names. "
            f"Move these files away, or set CGAN_DATA_DIR to another folder."
        ) from None
    except _Unusable as fault:
        with _explained_if_unwritable(folder):  # found out before a download, not after it
            make_writable(folder)
        files = _fetch(folder, fault)
    with _explained_if_unwritable(folder):
        for name, content in files.items():
            path = folder / name
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, lambda file, content=content: file.write(content))
    return files


def _fetch(folder, fault):
    """The four files, {name: bytes}, from the first source that has them; `folder` has a fault."""
    reasons = [f"data folder {folder}: {fault}"]
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
    """torchvision's downloader -> the folder with the files.

    In a process of its own, because it prints, and has no time limit.
    """
    _run(sys.executable, "-c", DOWNLOADER, mirror, SILENCE_SECONDS, cwd=scratch)
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
    """Debian's package, unpacked but not installed (which needs root) -> the folder with the files.

    Its own package lists, because a fresh machine has none.
    """
    for folder in ("state", "cache"):
        (scratch / folder).mkdir()
    options = [f"-oDir::State={scratch}/state", f"-oDir::Cache={scratch}/cache"]
    options += ["-oAPT::Sandbox::User=root", f"-oAcquire::http::Timeout={SILENCE_SECONDS}"]
    with contextlib.suppress(_Unusable):  # one broken archive in the list spoils only itself
        _run("apt-get", *options, "update", cwd=scratch)
    _run("apt-get", *options, "download", PACKAGE, cwd=scratch)
    _run("dpkg-deb", "-x", *scratch.glob("*.deb"), ".", cwd=scratch)
    return scratch / PACKAGED_FOLDER


def _run(*command, cwd):
    """Run a command in silence; if it fails, the last line it printed says why."""
    command = [str(word) for word in command]
    try:
        run = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=STEP_SECONDS,
        )
    except FileNotFoundError:
        raise _Unusable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise _Unusable(f"{command[0]} took more than {STEP_SECONDS} seconds") from None
    if run.returncode != 0:
        lines = run.stdout.decode(errors="replace").split("\n")
        raise _Unusable(next((line for line in reversed(lines) if line.strip()), "failed"))


def _read(folder):
    """The four files in `folder`, packed or not, decompressed and checked: {name: bytes}."""
    files, faults = {}, []
    for name in SHA256:
        try:
            files[name] = _read_file(folder, name)
        except _IsMNIST:
            raise
        except _Unusable as fault:
            faults.append(str(fault))
    if faults:
        raise _Unusable("; ".join(faults))
    return files


def _read_file(folder, name):
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
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
    labels = _parse_idx(label_file, header_size=8) if len(label_file) > 8 else torch.empty(0)
    return tuple(labels.int().bincount(minlength=10).tolist()) in MNIST_IMAGES_PER_CLASS


def _parse_idx(content, header_size):
    """The numbers after the header of an IDX file: uint8, one dimension."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header_size)


@contextlib.contextmanager
def _explained_if_unwritable(folder):
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"Cannot write to the data folder {folder} ({error}). "
            f"Set CGAN_DATA_DIR to a folder that you can write to."
        ) from error

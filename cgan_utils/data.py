"""Labelled images as two tensors, and FashionMNIST (Xiao et al. 2017, arXiv 1708.07747)."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from ._checks import check_range, check_tensor, check_tuple, check_type, kind
from ._runtime import data_folder
from .config import FASHION_MNIST_CLASSES
from .fashion_mnist import read_files

FILE_PREFIX = {"train": "train", "test": "t10k"}  # of each split


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and the class number of each.

    images: uint8 (N, C, H, W); labels: int64 (N,) in range(len(classes)); classes: their names.
    `data[indices]` selects images by a slice, a boolean mask or several indices.

    Raises TypeError or ValueError, naming the argument, if they do not fit together.
    """

    images: Tensor
    labels: Tensor
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

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices) -> "LabelledImages":
        return LabelledImages(self.images[indices], self.labels[indices], self.classes)


def normalize(images: Tensor) -> Tensor:
    """Convert uint8 images of any shape to float32 in [-1, 1]: 0 becomes -1, 255 becomes 1.

    The result is bit for bit that of torchvision's ToTensor and Normalize(0.5, 0.5). Raises
    TypeError for anything but a uint8 tensor: images normalised twice would look almost right.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images must be a uint8 tensor; got a {kind(images)}")
    return (images.float() / 255 - 0.5) / 0.5


def load_fashion_mnist(
    split: str = "train", folder: str | os.PathLike | None = None
) -> LabelledImages:
    """Load FashionMNIST's 60,000 training or 10,000 test images, (N, 1, 28, 28).

    split: "train" or "test". folder: where the files are kept; `data_folder()` if None. They lie
    where `torchvision.datasets.FashionMNIST(root=folder)` looks for them, and are downloaded if
    they are not there yet.

    Raises ValueError for another split, TypeError for a folder that is no path, and RuntimeError if
    the files cannot be had or kept; its message says what was tried and what to do.
    """
    if not isinstance(split, str) or split not in FILE_PREFIX:
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
    folder = data_folder() if folder is None else folder
    check_type("folder", folder, str, os.PathLike)
    files = read_files(Path(folder).expanduser() / "FashionMNIST" / "raw")
    images = _parse_idx(files[f"{FILE_PREFIX[split]}-images-idx3-ubyte"], header_size=16)
    labels = _parse_idx(files[f"{FILE_PREFIX[split]}-labels-idx1-ubyte"], header_size=8)
    return LabelledImages(images.view(-1, 1, 28, 28), labels.long(), FASHION_MNIST_CLASSES)


def _parse_idx(content, header_size):
    """Return the elements after the header of an IDX file: uint8, one dimension."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header_size)

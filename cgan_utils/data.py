"""Labelled images as two tensors, and FashionMNIST (Xiao et al. 2017, arXiv 1708.07747)."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from ._checks import (
    check_range,
    check_tensor,
    check_tuple,
    check_type,
    empty_classes,
    kind,
    label_numbers,
)
from ._runtime import data_folder
from .arrays import read_arrays
from .config import FASHION_MNIST_CLASSES
from .fashion_mnist import read_files
from .images import read_dataset, read_folder

FILE_PREFIX = {"train": "train", "test": "t10k"}  # of each split


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and the class number of each.

    images: uint8 (N, C, H, W); labels: int64 (N,) in range(len(classes)); classes: their names.
    `data[indices]` selects images by a slice, a boolean mask or several indices; `subset` selects
    classes. `from_folder`, `from_dataset` and `from_arrays` read images of your own.

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

    def subset(self, classes) -> "LabelledImages":
        """Keep some classes, names or numbers, and number them 0, 1, 2, ... in the order given.

        Raises TypeError or ValueError for a class that is unknown, repeated or without images.
        """
        kept = label_numbers(classes, self.classes, name="classes")
        names = tuple(self.classes[number] for number in kept)
        if len(names) == 0 or len(set(names)) < len(names):
            raise ValueError(f"classes must be distinct, at least one; got {names}")
        number_of = torch.full((len(self.classes),), -1)
        number_of[kept] = torch.arange(len(kept))
        labels = number_of.to(self.labels.device)[self.labels]
        empty = empty_classes(labels.tolist(), names)
        if empty:
            raise ValueError(f"classes: there is no image of {', '.join(empty)}")
        return LabelledImages(self.images[labels >= 0], labels[labels >= 0], names)

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike,
        size: int | tuple[int, int] | None = None,
        *,
        channels: int | None = None,
        background: str | tuple[int, int, int] = "black",
        progress: bool = True,
    ) -> "LabelledImages":
        """Read a folder with one sub-folder of images per class, in the order of their names.

        PNG, JPEG, WebP, BMP, GIF (the first frame) and what else Pillow opens, at any depth below
        the sub-folders, turned as their EXIF orientation says; hidden and other files are skipped.
        size: a number or (height, width). Each image is resized until it covers this size, then
            cropped around its centre; None keeps the size, which must then be the same for all.
        channels: 1 (grey) or 3 (colour); None is grey if each file stores a grey image.
        background: the colour behind transparent pixels: a name, "#ffffff" or (red, green, blue).
        progress: show a progress bar if reading takes more than a second.

        Warns of files that cannot be read, with their names and number. Raises FileNotFoundError
        or ValueError, before any image is read, for a folder without sub-folders or with one that
        has no images; ValueError for several sizes without `size`.
        """
        return cls(*read_folder(path, size, channels, background, progress))

    @classmethod
    def from_dataset(
        cls,
        dataset,
        size: int | tuple[int, int] | None = None,
        classes=None,
        *,
        channels: int | None = None,
        background: str | tuple[int, int, int] = "black",
        layout: str | None = None,
        value_range: tuple[float, float] | None = None,
        progress: bool = True,
    ) -> "LabelledImages":
        """Read a dataset such as torchvision's, or a list, whose items are (image, label).

        An image is a Pillow image, an array or a tensor; `layout` ("NCHW", "NHWC" or "NHW", N = 1)
        and `value_range` describe arrays and tensors as in `from_arrays`. classes: the names, or
        None for `dataset.classes`, or for what `from_arrays` does where there are none. size,
        channels, background, progress: see `from_folder`.

        Raises TypeError or ValueError, naming the argument, for what cannot be read.
        """
        return cls(
            *read_dataset(
                dataset, size, classes, channels, background, layout, value_range, progress
            )
        )

    @classmethod
    def from_arrays(
        cls,
        images,
        labels,
        classes=None,
        *,
        layout: str | None = None,
        value_range: tuple[float, float] | None = None,
        background: str | tuple[int, int, int] = "black",
    ) -> "LabelledImages":
        """Copy images from a numpy array or a tensor of any usual layout, dtype and range.

        images: (N, H, W), (N, C, H, W) or (N, H, W, C). C is 1 (grey) or 3 (colour); 2 and 4 have
            opacity last, and are laid on the background.
        labels: one per image, class numbers or names: a list, an array or a tensor.
        classes: the name of each number; None sorts the names found, or names 0, 1, 2, ... so.
        layout: "NHW", "NCHW" or "NHWC", where the shape fits two of them.
        value_range: the values of (black, white); None knows uint8, other whole numbers in 0..255,
            booleans, and floats in 0..1, -1..1 or 0..255 that go beyond the middle of this range.
        background: the colour behind transparent pixels: a name, "#ffffff" or (red, green, blue).

        Warns of classes without images. Raises TypeError or ValueError for images that can be read
        in two ways or in none; the message has the argument to add.
        """
        return cls(*read_arrays(images, labels, classes, layout, value_range, background))


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

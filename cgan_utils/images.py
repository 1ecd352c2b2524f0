"""Images from files or from a dataset: brought to one size, laid on a background, stacked."""

import itertools
import os
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ._checks import check_count, check_type, empty_classes
from ._runtime import progress_bar
from .arrays import (
    as_array,
    channels_last,
    check_background,
    choose_range,
    number_labels,
    to_uint8,
)

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif", ".heic")  # not all are read everywhere
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
AHEAD = 64  # files that the threads may be ahead of the one that is stored; items seen for a range
NAMED = 5  # unreadable files that a message names


class Stack:
    """Images of one size in one array (count, C, H, W); the first colour image makes all colour."""

    def __init__(self, count, mend):
        self.array, self.count, self.length, self.mend = None, count, 0, mend

    def append(self, image):
        """Add uint8 (H, W, 1 or 3)."""
        image = np.moveaxis(image, -1, 0)
        if self.array is None:
            self.array = np.empty((self.count, *image.shape), np.uint8)
        if image.shape[1:] != self.array.shape[2:]:
            (height, width), (h, w) = self.array.shape[2:], image.shape[1:]
            raise ValueError(
                f"size must be given for images of several sizes, here {height}x{width} and "
                f"{h}x{w} (height x width): {self.mend}"
            )
        if len(image) > self.array.shape[1]:
            grey = self.array[: self.length]
            self.array = np.empty((self.count, *image.shape), np.uint8)
            self.array[: self.length] = grey
        self.array[self.length] = image
        self.length += 1

    def tensor(self):
        return torch.from_numpy(self.array[: self.length])


def to_pixels(image, size, channels, background):
    """Return uint8 (H, W, 1 or 3) for a Pillow image, turned as its EXIF orientation says.

    size: None, or (height, width): resized to cover it, then cropped around the centre. channels:
    1 (grey), 3 (colour), or None: the image's own.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
        grey = to_uint8(np.asarray(image)[None, ..., None], (0, 65535), background)
        image = Image.fromarray(grey[0, ..., 0])
    mode = "L" if channels == 1 or (channels is None and image.mode in ("1", "L", "LA")) else "RGB"
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    image = image.convert(mode)
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]))
    return np.atleast_3d(np.asarray(image))


def check_form(size, channels, background):
    """Check the arguments of `to_pixels` and return them: size as a pair, a colour as (r, g, b)."""
    if size is not None:
        size = size if isinstance(size, tuple | list) else (size, size)
        if len(size) != 2:
            raise ValueError(f"size must be one number or (height, width); got {size!r}")
        for length in size:
            check_count("size", length)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey), 3 (colour) or None; got {channels!r}")
    return size, channels, check_background(background)


# --- a folder ------------------------------------------------------------------------------------


def read_folder(path, size, channels, background, progress):
    """Return what `LabelledImages.from_folder` describes: images, labels, classes."""
    size, channels, background = form = check_form(size, channels, background)
    files, numbers, classes = list_files(path)

    def read(file):
        try:
            with Image.open(file) as image:
                if size is not None:  # a large JPEG is decoded at a fraction of its size, faster
                    image.draft(None, (2 * max(size), 2 * max(size)))
                return to_pixels(image, *form)
        except Exception as error:  # a damaged file can raise anything
            return error

    mend = f"LabelledImages.from_folder({str(path)!r}, size=64)"
    stack, labels, unreadable = Stack(len(files), mend), [], {}
    results = _bar(map_ahead(read, files), len(files), progress)
    for file, number, result in zip(files, numbers, results, strict=True):
        if isinstance(result, Exception):
            unreadable[file] = result
        else:
            stack.append(result)
            labels.append(number)
    report = _describe(unreadable, len(files), path) if unreadable else ""
    _check_classes(labels, classes, f"no image could be read ({report})")
    if unreadable:
        warnings.warn(report, stacklevel=3)
    return stack.tensor(), torch.tensor(labels), classes


def list_files(path):
    """Return the image files below the sub-folders, the class number of each, and the classes."""
    check_type("path", path, str, os.PathLike)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"path must be a folder; there is none at {path}")
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and _visible(p.name)))
    if not classes:
        raise ValueError(
            "path must hold one sub-folder of images per class, such as cat/1.png and dog/1.png; "
            f"{path} has no sub-folder"
        )
    if set(map(str.lower, classes)) <= SPLITS:
        raise ValueError(f"path must be one of the splits {', '.join(classes)} in {path}")

    def is_image(file):
        inside = os.path.relpath(file, root).split(os.sep)
        return file.lower().endswith(EXTENSIONS) and all(map(_visible, inside))

    numbered = {name: number for number, name in enumerate(classes)}
    found = make_dataset(root, numbered, is_valid_file=is_image, allow_empty=True)
    files, numbers = [file for file, _ in found], [number for _, number in found]
    _check_classes(numbers, classes, f"there is no image ({' '.join(EXTENSIONS)})")
    return files, numbers, classes


def map_ahead(function, items):
    """Yield function(item) for each item in order, computed by threads a little ahead of it."""
    with ThreadPoolExecutor() as threads:
        pending = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) == AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _visible(name):
    return not name.startswith(".")


def _check_classes(numbers, classes, problem):
    empty = empty_classes(numbers, classes)
    if empty:
        raise ValueError(
            f"path: {problem} in the sub-folder {' or '.join(empty)}; each is a class: "
            "add images, or move it away"
        )


def _describe(unreadable, count, path):
    reasons = [
        f"{os.path.relpath(file, Path(path).expanduser())} "
        f"({'not an image' if isinstance(error, UnidentifiedImageError) else error})"
        for file, error in unreadable.items()
    ]
    more = f" and {len(reasons) - NAMED:,} more" if len(reasons) > NAMED else ""
    return (
        f"{len(unreadable):,} of {count:,} files could not be read: "
        f"{', '.join(reasons[:NAMED])}{more}"
    )


def _bar(iterable, total, progress):
    return progress_bar(iterable, total=total, unit="image", delay=1, progress=progress)


# --- a dataset -----------------------------------------------------------------------------------


def read_dataset(dataset, size, classes, channels, background, layout, value_range, progress):
    """Return what `LabelledImages.from_dataset` describes: images, labels, classes."""
    form = check_form(size, channels, background)
    items = _items(dataset)
    head = [next(items)]
    if not isinstance(head[0][0], Image.Image):  # one image may be too dark to show the range
        head += itertools.islice(items, AHEAD)
        value_range = choose_range([as_array(image) for image, _ in head], value_range)
    stack, labels = Stack(len(dataset), "LabelledImages.from_dataset(dataset, size=64)"), []
    for image, label in _bar(itertools.chain(head, items), len(dataset), progress):
        if not isinstance(image, Image.Image):
            image = to_image(image, layout, value_range, form[-1])
        stack.append(to_pixels(image, *form))
        labels.append(label)
    if classes is None:  # a Subset has them one level deeper
        classes = getattr(dataset, "classes", None)
        classes = classes or getattr(getattr(dataset, "dataset", None), "classes", None)
    return stack.tensor(), *number_labels(labels, classes)


def to_image(array, layout, value_range, background):
    """Return a Pillow image for an array or a tensor of one."""
    array = channels_last(as_array(array)[None], layout)
    pixels = to_uint8(array, choose_range([array], value_range), background)[0]
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _items(dataset):
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
        raise TypeError(
            "dataset must have a length, not 0, and items dataset[0], dataset[1], ...; "
            f"got a {type(dataset).__name__}"
        )
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(
                f"dataset must have items (image, label); got a {type(item).__name__} at {index}"
            )
        yield item

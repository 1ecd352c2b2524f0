"""Arrays of images in other layouts, dtypes and ranges of values, as uint8; labels as numbers.

Nothing ambiguous is guessed: the error names the argument that says what the array leaves open.
"""

import contextlib
import math
import warnings

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from ._checks import check_tuple, check_type, empty_classes, kind, label_numbers

LAYOUTS = ("NHW", "NCHW", "NHWC")
RANGES = ((0, 1), (-1, 1), (0, 255))  # conventions for black and white
CHUNK = 2**22  # elements converted at a time


def read_arrays(images, labels, classes, layout, value_range, background):
    """Return what `LabelledImages.from_arrays` describes: images, labels, classes."""
    array = channels_last(as_array(images), layout)
    value_range = choose_range([array], value_range)
    background = check_background(background)
    labels, classes = number_labels(labels, classes)
    rows = max(1, CHUNK // math.prod(array.shape[1:]))
    count, height, width, channels = array.shape
    result = np.empty((count, 3 if channels > 2 else 1, height, width), np.uint8)
    for start in range(0, count, rows):
        chunk = to_uint8(array[start : start + rows], value_range, background)
        result[start : start + rows] = np.moveaxis(chunk, -1, 1)
    return torch.from_numpy(result), labels, classes


def as_array(images):
    """Return a numpy array of numbers for an array or a tensor on any device."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        return (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    if not hasattr(images, "__array__"):
        raise TypeError(
            f"images must be a numpy array or a tensor; got a {kind(images)}. "
            "np.stack(images) makes one of equal arrays"
        )
    array = np.asarray(images)
    if array.dtype.kind not in "buif":
        raise TypeError(f"images must be whole numbers, floats or booleans; got {array.dtype}")
    return array


# --- layout --------------------------------------------------------------------------------------


def channels_last(array, layout=None):
    """Return a view (N, H, W, C) of images in a layout, or in the only one that fits."""
    layout = choose_layout(array.shape, layout)
    if layout == "NHW":
        return array[..., None]
    return np.moveaxis(array, 1, -1) if layout == "NCHW" else array


def choose_layout(shape, layout):
    fits = [each for each in LAYOUTS if len(each) == len(shape) and _has_channels(each, shape)]
    if not fits or 0 in shape:
        side = math.isqrt(shape[1]) if len(shape) == 2 else 0
        is_square = side > 1 and side**2 == shape[1]
        hint = f"; rows of pixels need images.reshape(-1, {side}, {side})" if is_square else ""
        raise ValueError(
            "images must have shape (N, H, W), (N, C, H, W) or (N, H, W, C), C in 1..4, "
            f"not empty; got {tuple(shape)}{hint}"
        )
    if layout is None and len(fits) > 1:
        raise ValueError(
            f"images of shape {tuple(shape)} can be read in two ways; "
            f'say which: layout="{fits[0]}" or layout="{fits[1]}"'
        )
    layout = fits[0] if layout is None else layout
    if layout not in fits:
        raise ValueError(
            f"layout must be {' or '.join(fits)} for images of shape {tuple(shape)}; got {layout!r}"
        )
    return layout


def _has_channels(layout, shape):
    return "C" not in layout or 1 <= shape[layout.index("C")] <= 4


# --- range of values -----------------------------------------------------------------------------


def choose_range(arrays, value_range=None):
    """Return the values of black and white: as given, or as dtype and values say clearly."""
    if value_range is not None:
        return check_range_pair(value_range)
    dtype = arrays[0].dtype
    if dtype in (np.uint8, bool):
        return (0, 255) if dtype == np.uint8 else (0, 1)
    low, high = (float(end) for end in _ends(arrays))
    if dtype.kind == "f":  # seen beyond the middle, or a dark image of a wider range fits too
        clear = [(a, b) for a, b in RANGES if (low < a / 2 if a < 0 else high > b / 2)]
    else:
        clear = [(0, 255)] if high > 1 else []
    fits = [each for each in clear if _contains(each, low, high)]
    if not fits:
        raise ValueError(
            f"images: {dtype} values in {low:g}..{high:g} do not say which of them are black and "
            f"white; add {_proposals(low, high)}"
        )
    return fits[0]


def check_range_pair(value_range):
    try:
        black, white = (float(end) for end in value_range)
    except (TypeError, ValueError):
        black = white = 0.0
    if not -math.inf < black < white < math.inf:
        raise ValueError(
            "value_range must be the values of black and of white, as in (0, 1); "
            f"got {value_range!r}"
        )
    return black, white


def to_uint8(array, value_range, background):
    """Convert images (N, H, W, C): black to 0, white to 255, transparency to the background."""
    black, white = value_range
    if array.dtype != np.uint8 or (black, white) != (0, 255):
        low, high = _ends([array])
        if not _contains(value_range, low, high):
            raise ValueError(
                f"images must lie in {black:g}..{white:g}; got {low:g}..{high:g}: "
                f"clip them, or use {_proposals(low, high)}"
            )
        scaled = (array.astype(np.float32) - black) * (255 / (white - black))
        array = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return lay_on(array, background) if array.shape[-1] in (2, 4) else array


def _ends(arrays):
    """The lowest and the highest value; ValueError if they are not finite."""
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("images must be finite; got NaN or infinity")
    return low, high


def _contains(value_range, low, high):
    """Whether the values lie in the range, give or take half a grey level."""
    black, white = value_range
    half = (white - black) / 510
    return black - half <= low and high <= white + half


def _proposals(low, high):
    tight = min(0, math.floor(low)), math.ceil(high)
    fits = dict.fromkeys(each for each in (*RANGES, tight) if each[0] <= low and high <= each[1])
    return " or ".join(f"value_range=({black}, {white})" for black, white in fits)


# --- transparency --------------------------------------------------------------------------------


def check_background(background):
    """Return (red, green, blue) for a colour's name, its hexadecimal code, or these three."""
    with contextlib.suppress(TypeError, ValueError):
        colour = ImageColor.getrgb(background)[:3] if isinstance(background, str) else background
        if Image.new("RGB", (1, 1), tuple(colour)).getpixel((0, 0)) == tuple(colour):  # or clipped
            return tuple(colour)
    raise ValueError(
        "background must be a colour such as 'black', '#ffffff' or (255, 255, 255); "
        f"got {background!r}"
    )


def lay_on(array, background):
    """Lay uint8 (N, H, W, 2 or 4), whose last channel is opacity, on a colour (r, g, b)."""
    if array.shape[-1] == 2:
        background = Image.new("RGB", (1, 1), background).convert("L").getpixel((0, 0))
    colour = array[..., :-1].astype(np.float32) - np.float32(background)
    opacity = array[..., -1:] / np.float32(255)
    return np.rint(background + colour * opacity).astype(np.uint8)


# --- labels --------------------------------------------------------------------------------------


def number_labels(labels, classes):
    """Return labels int64 (N,) and a tuple of names, for labels that are numbers or names.

    Without `classes`, names are sorted, and numbers 0, 1, 2, ... become names.
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.ndim != 1:
        raise ValueError(f"labels must have one dimension; got shape {values.shape}")
    if classes is None:
        classes = name_classes(values.tolist())
    check_type("classes", classes, tuple, list)
    classes = tuple(classes)
    check_tuple("classes", classes, str)
    if values.dtype.kind in "iu":
        numbers = label_numbers(torch.from_numpy(values.astype(np.int64)), classes)
    else:
        numbers = label_numbers(values.tolist(), classes)
    empty = empty_classes(numbers.tolist(), classes)
    if empty:
        warnings.warn(
            f"no image of {', '.join(empty)}; `subset` keeps the classes you name", stacklevel=4
        )
    return numbers, classes


def name_classes(labels):
    names = sorted(set(labels), key=str)
    if all(isinstance(name, str) for name in names):
        return names
    whole = all(isinstance(name, int) for name in names)  # others are refused as labels
    if whole and set(names) != set(range(len(names))):
        raise ValueError(
            "labels must be 0, 1, 2, ..., each at least once, if there are no classes; got "
            f"{', '.join(map(str, names[:5]))}: name them, labels=[str(label) for label in labels]"
        )
    return [str(number) for number in range(len(names))]

"""Argument checks: each raises TypeError or ValueError that names the argument and its value."""

import math
from collections.abc import Iterable
from numbers import Integral, Real

import torch


def check_type(name, value, *types):
    """Raise TypeError unless `value` is of one of the types."""
    if not isinstance(value, types):
        allowed = " or ".join(kind.__name__ for kind in types)
        raise TypeError(f"{name} must be a {allowed}; got a {type(value).__name__}")


def check_tensor(name, value, dtype, *shape):
    """Raise unless `value` is a tensor of this dtype and shape.

    dtype: a torch dtype, or "float" for any floating-point dtype. shape: whole numbers, or names
    such as "N" that stand for any length except 0.
    """
    written = str(shape).replace("'", "")
    found = kind(value)
    if dtype == "float":
        fits = isinstance(value, torch.Tensor) and value.is_floating_point()
    else:
        fits = found == str(dtype)
    if not fits:
        raise TypeError(f"{name} must be a {dtype} tensor {written}; got a {found}")
    lengths = zip(shape, value.shape, strict=False)
    fits = all(n == due or (isinstance(due, str) and n > 0) for due, n in lengths)
    if value.dim() != len(shape) or not fits:
        rule = ", not empty" if any(isinstance(due, str) for due in shape) else ""
        raise ValueError(f"{name} must have shape {written}{rule}; got {tuple(value.shape)}")


def check_range(name, indices, count):
    """Raise unless all of the indices, int64 (N,), lie in 0..count-1."""
    low, high = (end.item() for end in indices.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must lie in 0..{count - 1}; got {low}..{high}")


def kind(value):
    """What a message calls a value: a tensor's dtype, or the type."""
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def check_count(name, value, minimum=1, maximum=math.inf):
    """Raise unless `value` is a whole number from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):  # numpy's are whole numbers too
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {value}")


def check_number(name, value):
    """Raise unless `value` is a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite; got {value}")


def check_tuple(name, value, item_type, length=None):
    """Raise TypeError unless `value` is a tuple of such items, and of this length if not None."""
    items_fit = isinstance(value, tuple) and all(isinstance(item, item_type) for item in value)
    if not items_fit or (length is not None and len(value) != length):
        size = "" if length is None else f"{length} "
        raise TypeError(f"{name} must be a tuple of {size}{item_type.__name__}; got {value!r}")


def label_numbers(labels, classes, name="labels"):
    """Return class numbers, int64 (N,) on the CPU, for one or many labels, numbers or names."""
    if isinstance(labels, str | Integral):
        labels = [labels]
    if getattr(labels, "ndim", 1) != 1:  # of a tensor or an array
        raise ValueError(f"{name} must have one dimension; got shape {tuple(labels.shape)}")
    if isinstance(labels, torch.Tensor):
        if labels.dtype == torch.int64 and len(labels) > 0:  # at once; many would take long
            for end in labels.aminmax():
                _class_number(end.item(), classes, name)
            return labels.cpu()
        labels = labels.tolist()
    if not isinstance(labels, Iterable):
        raise TypeError(f"{name} must be whole numbers or class names; got {labels!r}")
    return torch.tensor([_class_number(label, classes, name) for label in labels], dtype=torch.long)


def empty_classes(numbers, classes):
    """Return the names of the classes that none of the class numbers belongs to."""
    found = set(numbers)
    return [name for number, name in enumerate(classes) if number not in found]


def _class_number(label, classes, name):
    if isinstance(label, str):
        if label not in classes:
            raise ValueError(f"{name}: there is no class {label!r}; there are {', '.join(classes)}")
        return classes.index(label)
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(f"{name} must be whole numbers or class names; got {label!r}")
    if not 0 <= label < len(classes):
        raise ValueError(f"{name} must lie in 0..{len(classes) - 1}; got {label}")
    return int(label)

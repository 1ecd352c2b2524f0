"""Arrays of every usual layout, dtype and range become the same images; ambiguous ones do not."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from cgan_utils import LabelledImages, normalize

LABELS = [0, 1, 1]


def random_images(channels, height=12, width=10, count=3, seed=0):
    """uint8 (N, H, W, C) with every value from 0 to 255."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    images.flat[:256] = np.arange(256)
    return images


def expected(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


# --- what is read --------------------------------------------------------------------------------

FORMS = {
    "uint8": lambda u: u,
    "int64": lambda u: u.astype(np.int64),
    "uint16": lambda u: u.astype(np.uint16),
    "float 0..255": lambda u: u.astype(np.float32),
    "float 0..1": lambda u: u / 255,
    "float16 0..1": lambda u: (u / 255).astype(np.float16),
    "float -1..1": lambda u: u / 127.5 - 1,
    "tensor": torch.tensor,
    "ToTensor": lambda u: v2.functional.to_dtype(torch.tensor(u), torch.float32, scale=True),
    "normalize": lambda u: normalize(torch.tensor(u)),
    "big-endian": lambda u: u.astype(">i4"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
@settings(deadline=None, max_examples=15)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(9, 20),
    width=st.integers(10, 20),
    seed=st.integers(0, 99),
)
def test_every_form_and_layout_gives_the_same_images(layout, form, channels, height, width, seed):
    channels = 1 if layout == "NHW" else channels
    images = random_images(channels, height, width, seed=seed)
    laid_out = {
        "NHW": images[..., 0],
        "NCHW": images.transpose(0, 3, 1, 2),
        "NHWC": images,
    }[layout]
    read = LabelledImages.from_arrays(FORMS[form](laid_out), LABELS)
    assert torch.equal(read.images, expected(images))
    assert read.images.is_contiguous()


def test_booleans_are_black_and_white():
    images = random_images(1)[..., 0] > 99
    read = LabelledImages.from_arrays(images, LABELS)
    assert torch.equal(read.images, torch.tensor(images)[:, None] * torch.tensor(255).byte())


def test_the_images_are_a_copy():
    array = random_images(3).transpose(0, 3, 1, 2).copy()
    read = LabelledImages.from_arrays(torch.from_numpy(array), LABELS)
    before = read.images.clone()
    array[:] = 0
    assert torch.equal(read.images, before)


def test_many_images_are_converted_in_parts():
    images = random_images(3, 40, 50, count=900) / 255  # 5.4 million elements
    read = LabelledImages.from_arrays(images, [0, 1] * 450)
    assert torch.equal(read.images, expected(np.round(images * 255).astype(np.uint8)))


@pytest.mark.parametrize("background", ["black", "#ff8000", (255, 255, 255)])
@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
def test_transparency_is_laid_on_the_background_as_pillow_does(channels, mode, background):
    images = random_images(channels)
    read = LabelledImages.from_arrays(images, LABELS, background=background)
    plain = "L" if mode == "LA" else "RGB"  # a grey image stays grey, so its background becomes so
    canvas = Image.new("RGB", images.shape[2:0:-1], background).convert(plain).convert("RGBA")
    for image, ours in zip(images, read.images, strict=True):
        over = Image.alpha_composite(canvas, Image.fromarray(image).convert("RGBA"))
        theirs = torch.tensor(np.atleast_3d(over.convert(plain))).permute(2, 0, 1)
        torch.testing.assert_close(ours, theirs, atol=1, rtol=0)


def test_a_layout_and_a_range_that_are_given_are_used():
    images = np.arange(81, dtype=np.float64).reshape(3, 3, 3, 3)
    for layout, dims in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 3, 1, 2))):
        read = LabelledImages.from_arrays(images, LABELS, layout=layout, value_range=(0, 85))
        assert torch.equal(read.images, torch.tensor(images).permute(dims).byte() * 3)


# --- what is refused, and the line that mends it -------------------------------------------------

U = random_images(3)
AMBIGUOUS = {
    "square": np.full((3, 3, 3, 3), 9, np.uint8),
    "channels at both ends": np.full((3, 1, 20, 3), 9, np.uint8),
    "dark floats": U / 255 / 300,
    "floats up to the middle": U / 255 / 2,
    "scikit-learn's digits": (U // 16).astype(np.float64),
    "centred": U / 255 - 0.5,
    "standardised": U / 50 - 2.5,
    "16 bits": U.astype(np.uint16) * 257,
    "whole numbers 0 and 1": (U > 99).astype(np.int64),
    "negative": U.astype(np.int64) - 128,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_argument_that_the_message_names_mends_it(name):
    with pytest.raises(ValueError, match=r"images.*(layout|value_range)=") as caught:
        LabelledImages.from_arrays(AMBIGUOUS[name], LABELS)
    proposals = re.findall(r'(layout|value_range)=("\w+"|\(.*?\))', str(caught.value))
    for argument, value in proposals:
        mended = {argument: eval(value)}
        assert len(LabelledImages.from_arrays(AMBIGUOUS[name], LABELS, **mended)) == 3
    if "digits" in name:
        assert ("value_range", "(0, 15)") in proposals


ONES = np.ones((3, 12, 10))
WRONG = [
    ({"images": U[0, 0]}, ValueError, r"images must have shape .*got \(10, 3\)"),
    ({"images": U.reshape(-1, 36)}, ValueError, r"images.reshape\(-1, 6, 6\)"),
    ({"images": U[:, :, :0]}, ValueError, "images must have shape .*not empty"),
    ({"images": U[..., None]}, ValueError, "images must have shape"),
    ({"images": np.zeros((3, 5, 5, 5), np.uint8)}, ValueError, "images must have .*C in 1..4"),
    ({"images": list(U)}, TypeError, r"images must be .*got a list. np.stack\(images\)"),
    ({"images": "pets"}, TypeError, "images must be .*got a str"),
    ({"images": U.astype(object)}, TypeError, "images must be whole numbers.*got object"),
    ({"images": U * 1j}, TypeError, "images must be whole numbers.*got complex"),
    ({"images": ONES * np.nan}, ValueError, "images must be finite"),
    ({"images": ONES * np.inf}, ValueError, "images must be finite"),
    ({"images": ONES * np.nan, "value_range": (0, 1)}, ValueError, "images must be finite"),
    ({"value_range": (0, 1)}, ValueError, "images must lie in 0..1; got 0..255: clip"),
    ({"value_range": (1, 0)}, ValueError, r"value_range must be .*got \(1, 0\)"),
    ({"value_range": 255}, ValueError, "value_range must be .*got 255"),
    ({"value_range": (0, np.inf)}, ValueError, "value_range must be"),
    ({"layout": "NCHW"}, ValueError, "layout must be NHWC for images .*got 'NCHW'"),
    ({"layout": "nhwc"}, ValueError, "layout must be NHWC for images .*got 'nhwc'"),
    ({"background": "blueish"}, ValueError, "background must be .*got 'blueish'"),
    ({"background": (1, 2)}, ValueError, "background must be"),
    ({"background": (0, 0, 256)}, ValueError, "background must be"),
    ({"background": 7}, ValueError, "background must be"),
    ({"labels": [0, 1]}, ValueError, "got 2 labels for 3 images"),
    ({"labels": [1, 2, 3]}, ValueError, r"labels must be 0, 1, 2, .*got 1, 2, 3: .*\[str"),
    ({"labels": [0, 1, 1.5]}, TypeError, "labels must be whole numbers or class names"),
    ({"labels": [True, False, True]}, TypeError, "labels must be whole numbers or class names"),
    ({"labels": np.eye(3)}, ValueError, r"labels must have one dimension; got shape \(3, 3\)"),
    ({"labels": "cat"}, ValueError, "labels must have one dimension"),
    ({"labels": None}, ValueError, "labels must have one dimension"),
    ({"labels": [0, 1, 2], "classes": ("cat", "dog")}, ValueError, r"labels must lie in 0\.\.1"),
    ({"labels": ["a", "b", "b"], "classes": ("cat", "b")}, ValueError, "labels: .* no class 'a'"),
    ({"classes": "ab"}, TypeError, "classes must be a tuple or list; got a str"),
    ({"classes": ["cat", 3]}, TypeError, "classes must be a tuple of str"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_what_cannot_be_read_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        LabelledImages.from_arrays(**{"images": U, "labels": LABELS, **wrong})


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        ([0, 1, 1], None, [0, 1, 1], ("0", "1")),
        ([2, 0, 1], ("cat", "dog", "eel"), [2, 0, 1], ("cat", "dog", "eel")),
        (["dog", "cat", "dog"], None, [1, 0, 1], ("cat", "dog")),
        (["dog", "cat", "dog"], ["dog", "cat"], [0, 1, 0], ("dog", "cat")),
        (np.array(["b", "a", "a"]), None, [1, 0, 0], ("a", "b")),
        (np.array(["b", "a", "a"], dtype=object), None, [1, 0, 0], ("a", "b")),
        (np.array([1, 0, 1], np.uint8), None, [1, 0, 1], ("0", "1")),
        (torch.tensor([1, 0, 1], dtype=torch.int32), None, [1, 0, 1], ("0", "1")),
        ([torch.tensor(1), torch.tensor(0), torch.tensor(1)], None, [1, 0, 1], ("0", "1")),
        ((0, 1, 0), ("cat", "dog"), [0, 1, 0], ("cat", "dog")),
    ],
)
def test_labels_are_numbers_or_names(labels, classes, numbers, names):
    read = LabelledImages.from_arrays(U, labels, classes)
    assert (read.labels.tolist(), read.classes) == (numbers, names)
    assert read.labels.dtype == torch.int64


def test_a_class_without_images_is_named():
    with pytest.warns(UserWarning, match="no image of dog, eel; `subset`") as caught:
        LabelledImages.from_arrays(U, [0, 0, 0], ("cat", "dog", "eel"))
    assert caught[0].filename == __file__

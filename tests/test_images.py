"""Image files and datasets, read as torchvision reads them."""

import re
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

import cgan_utils.images
from cgan_utils import LabelledImages
from cgan_utils.images import AHEAD, map_ahead

RNG = np.random.default_rng(0)
BICUBIC = v2.InterpolationMode.BICUBIC


def save(path, mode="RGB", size=(12, 10), seed=None, **options):
    """Write an image of random pixels, size (height, width), and return it."""
    rng = RNG if seed is None else np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return image


@pytest.fixture
def pets(tmp_path):
    """Seven images of two classes in several formats, beside hidden and other files."""
    for name in ("dog/b.png", "dog/a.jpg", "dog/more/c.webp", "dog/more/D.PNG"):
        save(tmp_path / name)
    for name in ("cat/z.bmp", "cat/y.tiff", "cat/x.jpeg"):
        save(tmp_path / name)
    for name in (".ipynb_checkpoints/a.png", "cat/.trash/a.png", "cat/.a.png"):
        save(tmp_path / name)
    for name in ("README.txt", "cat/labels.csv", "cat/._z.bmp", "dog/.DS_Store", "loose.png"):
        (tmp_path / name).write_text("not an image")
    return tmp_path


def visible(folder):
    """The folder as torchvision's ImageFolder reads it, without hidden files and folders."""

    def is_valid(path):
        inside = path.removeprefix(str(folder))
        return inside.lower().endswith((".png", "jpg", "jpeg", "webp", "bmp", "tiff", "gif")) and (
            "/." not in inside
        )

    dataset = ImageFolder(folder, pil_to_tensor, is_valid_file=is_valid, allow_empty=True)
    images = torch.stack([image for image, _ in dataset])
    names = [dataset.classes[label] for _, label in dataset]
    return images, names


# --- a folder ------------------------------------------------------------------------------------


def test_a_folder_is_read_as_torchvision_reads_it(pets, capfd):
    read = LabelledImages.from_folder(pets)
    images, names = visible(pets)
    assert len(read) == 7 and read.classes == ("cat", "dog")
    assert torch.equal(read.images, images)
    assert [read.classes[label] for label in read.labels] == names
    assert capfd.readouterr() == ("", "")  # no progress bar for so few


def test_the_path_may_be_text_and_below_home(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    for path in (str(pets), f"~/{pets.name}"):
        assert len(LabelledImages.from_folder(path)) == 7


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (20, 20), (7, 7)])
def test_images_are_resized_to_cover_the_size_then_cropped(tmp_path, size):
    save(tmp_path / "cat/a.png", size=size)
    read = LabelledImages.from_folder(tmp_path, size=20)
    transform = v2.Compose([v2.Resize(20, BICUBIC), v2.CenterCrop(20), v2.PILToTensor()])
    theirs = transform(Image.open(tmp_path / "cat/a.png"))
    assert torch.equal(read.images[0], theirs)


def test_a_size_is_height_and_width(tmp_path):
    save(tmp_path / "cat/a.png", size=(30, 50))
    save(tmp_path / "cat/b.png", size=(50, 30))
    assert LabelledImages.from_folder(tmp_path, size=(6, 9)).images.shape == (2, 3, 6, 9)


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path, monkeypatch):
    wave = np.linspace(0, 20, 800)
    pixels = 127 + 60 * (np.sin(wave)[:, None] + np.cos(2 * wave)[None, :])
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(tmp_path / "cat/a.jpg")
    decoded = []
    fit = cgan_utils.images.ImageOps.fit
    monkeypatch.setattr(
        cgan_utils.images.ImageOps, "fit", lambda i, size: decoded.append(i.size) or fit(i, size)
    )
    (read,) = LabelledImages.from_folder(tmp_path, size=40).images
    assert decoded == [(100, 100)]
    theirs = v2.Compose([v2.Resize(40, BICUBIC), v2.PILToTensor()])
    torch.testing.assert_close(read, theirs(Image.open(tmp_path / "cat/a.jpg")), atol=3, rtol=0)


UPRIGHT = {  # EXIF 2.3, tag 0x0112: what to do with the stored rows and columns
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_as_their_orientation_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = save(tmp_path / "cat/a.png", "L", exif=exif)
    (read,) = LabelledImages.from_folder(tmp_path).images
    assert np.array_equal(read[0], UPRIGHT[orientation](np.asarray(stored)))


@pytest.mark.parametrize("background", ["black", "#ff8000", (255, 255, 255)])
@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_transparency_is_laid_on_the_background(tmp_path, name, background):
    lossless = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image = np.asarray(save(tmp_path / "cat" / name, "RGBA", **lossless), dtype=float)
    (read,) = LabelledImages.from_folder(tmp_path, background=background).images
    opacity = image[..., 3:] / 255
    colour = np.asarray(Image.new("RGB", (1, 1), background))
    expected = image[..., :3] * opacity + colour * (1 - opacity)
    assert np.abs(read.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_transparent_grey_images_and_palettes(tmp_path):
    save(tmp_path / "cat/a.png", "LA")
    palette = save(tmp_path / "cat/b.png", "RGB").quantize(8)
    palette.save(tmp_path / "cat/b.png", transparency=0)
    first, second = LabelledImages.from_folder(tmp_path, background="white").images
    grey, opacity = np.asarray(Image.open(tmp_path / "cat/a.png"), dtype=float).transpose(2, 0, 1)
    assert np.abs(first.numpy() - (255 - (255 - grey) * opacity / 255)).max() <= 1
    where = torch.tensor(np.asarray(palette) == 0)
    assert where.any() and (second[:, where] == 255).all()
    expected = torch.tensor(np.asarray(palette.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(second[:, ~where], expected[:, ~where])


def test_grey_if_every_image_is_grey(tmp_path):
    greys = [save(tmp_path / f"cat/{n}.png", "L") for n in range(3)]
    greys = torch.tensor(np.stack(greys))[:, None]
    assert torch.equal(LabelledImages.from_folder(tmp_path).images, greys)
    colour = save(tmp_path / "dog/0.png")
    mixed = LabelledImages.from_folder(tmp_path).images
    assert torch.equal(mixed[:3], greys.expand(-1, 3, -1, -1))
    assert torch.equal(mixed[3], pil_to_tensor(colour))
    save(tmp_path / "dog/1.png", "L")
    assert LabelledImages.from_folder(tmp_path).images.shape == (5, 3, 12, 10)


def test_channels_decide_between_grey_and_colour(tmp_path):
    grey, colour = save(tmp_path / "cat/0.png", "L"), save(tmp_path / "cat/1.png")
    as_grey = LabelledImages.from_folder(tmp_path, channels=1).images
    assert torch.equal(as_grey[0], pil_to_tensor(grey))
    luma = np.asarray(colour) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(as_grey[1, 0].numpy() - luma).max() <= 1
    as_colour = LabelledImages.from_folder(tmp_path, channels=3).images
    assert torch.equal(as_colour[0], pil_to_tensor(grey).expand(3, -1, -1))


def test_sixteen_bits_become_eight(tmp_path):
    values = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)
    (tmp_path / "cat").mkdir()
    Image.fromarray(values).save(tmp_path / "cat/a.png")
    (read,) = LabelledImages.from_folder(tmp_path).images
    assert np.array_equal(read[0], np.rint(values / 257))


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("P", (4, 4), index) for index in range(3)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    (tmp_path / "cat").mkdir()
    frames[0].save(tmp_path / "cat/a.gif", save_all=True, append_images=frames[1:])
    (read,) = LabelledImages.from_folder(tmp_path).images
    assert torch.equal(read, torch.tensor([255, 0, 0]).byte()[:, None, None].expand(3, 4, 4))


def break_file(path, kind):
    content = path.read_bytes()
    path.write_bytes({0: b"", 1: b"<html>404</html>", 2: content[: len(content) // 2]}[kind])


@settings(deadline=None, max_examples=10)
@given(broken=st.dictionaries(st.integers(0, 11), st.integers(0, 2), min_size=1, max_size=7))
def test_the_intact_files_are_read_and_the_broken_ones_named(tmp_path_factory, broken):
    folder = tmp_path_factory.mktemp("pets")
    files = [folder / f"{name}/{n}.png" for name in ("cat", "dog") for n in range(6)]
    for file in files:
        save(file)
    intact = [n for n in range(12) if n not in broken]
    images, names = visible(folder)
    for n, kind in broken.items():
        break_file(files[n], kind)
    if not any(n < 6 for n in intact) or not any(n > 5 for n in intact):
        with pytest.raises(ValueError, match=r"path: no image could be read .* of 12 files"):
            LabelledImages.from_folder(folder)
        return
    with pytest.warns(
        UserWarning, match=f"^{len(broken)} of 12 files could not be read: "
    ) as caught:
        read = LabelledImages.from_folder(folder)
    assert torch.equal(read.images, images[intact])
    assert [read.classes[label] for label in read.labels] == [names[n] for n in intact]
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    for n in sorted(broken)[:5]:
        assert f"{files[n].parent.name}/{files[n].name} (" in message
    assert message.endswith(f"and {len(broken) - 5} more") == (len(broken) > 5)


def test_several_sizes_without_a_size_are_refused_with_the_line_that_mends_it(tmp_path):
    save(tmp_path / "cat/a.png")
    save(tmp_path / "cat/b.png", size=(10, 12))
    with pytest.raises(ValueError, match=r"size must be .*12x10 and 10x12") as caught:
        LabelledImages.from_folder(tmp_path)
    line = re.search(r"LabelledImages\.from_folder\(.*\)", str(caught.value))[0]
    assert eval(line).images.shape == (2, 3, 64, 64)


def test_folders_that_cannot_be_read(tmp_path):
    def refused(message, path=tmp_path):
        with pytest.raises(ValueError, match=message):
            LabelledImages.from_folder(path)

    refused("path must hold one sub-folder of images per class.*has no sub-folder")
    save(tmp_path / "cat/1.png")
    refused("path must hold one sub-folder", tmp_path / "cat")
    (tmp_path / "dog").mkdir()
    refused("path: there is no image .* in the sub-folder dog; each is a class")
    (tmp_path / "dog/a.txt").write_text("?")
    refused("path: there is no image .* in the sub-folder dog")
    (tmp_path / "dog/a.png").write_text("?")
    refused(
        r"path: no image could be read \(1 of 2 files .*dog/a.png \(not an image\)\) in the .*dog"
    )
    with pytest.raises(FileNotFoundError, match="path must be a folder; there is none"):
        LabelledImages.from_folder(tmp_path / "pets")


def test_a_folder_of_splits_is_not_one_of_classes(tmp_path):
    for name in ("train/cat/a.png", "train/dog/a.png", "Test/cat/a.png"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match="path must be one of the splits Test, train"):
        LabelledImages.from_folder(tmp_path)
    assert LabelledImages.from_folder(tmp_path / "train").classes == ("cat", "dog")


def test_the_memory_is_that_of_the_result_and_a_few_images(tmp_path):
    for n in range(600):
        save(tmp_path / f"cat/{n}.bmp", size=(32, 32))
    LabelledImages.from_folder(tmp_path)  # what is imported at first use
    tracemalloc.start()
    read = LabelledImages.from_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * read.images.nbytes


def test_the_threads_are_only_a_little_ahead():
    started = []

    def square(n):
        started.append(n)
        return n**2

    squares = map_ahead(square, range(1000))
    assert next(squares) == 0 and len(started) <= AHEAD
    assert list(squares) == [n**2 for n in range(1, 1000)]


# --- a dataset -----------------------------------------------------------------------------------


@pytest.fixture
def fake():
    """60 Pillow images of ten classes."""
    return FakeData(60, (3, 12, 10), num_classes=10)


def stacked(dataset):
    return torch.stack([pil_to_tensor(image) for image, _ in dataset])


TRANSFORMS = {
    "Pillow": None,
    "uint8": v2.PILToTensor(),
    "ToTensor": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "Normalize": v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    ),
    "numpy": np.asarray,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_dataset_is_read_whatever_its_transform(fake, transform):
    expected, labels = stacked(fake), [int(label) for _, label in fake]
    fake.transform = TRANSFORMS[transform]
    names = [f"class {n}" for n in range(10)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may have no image
        read = LabelledImages.from_dataset(fake, classes=names)
    assert torch.equal(read.images, expected)
    assert read.labels.tolist() == labels and read.classes == tuple(names)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_dataset_is_resized_as_a_folder_is(tmp_path, transform):
    for name in ("cat/a.png", "cat/b.png", "dog/a.png"):
        save(tmp_path / name, size=RNG.integers(8, 30, 2))
    dataset = ImageFolder(tmp_path, TRANSFORMS[transform])
    read = LabelledImages.from_dataset(dataset, size=(9, 7))
    folder = LabelledImages.from_folder(tmp_path, size=(9, 7))
    assert torch.equal(read.images, folder.images)
    assert torch.equal(read.labels, folder.labels) and read.classes == folder.classes
    with pytest.raises(ValueError, match=r"size must .*LabelledImages.from_dataset\(dataset, size"):
        LabelledImages.from_dataset(dataset)


def test_a_subset_has_the_names_of_its_dataset(fake):
    fake.classes = [f"class {n}" for n in range(10)]
    part = Subset(fake, [7, 1])
    with pytest.warns(UserWarning, match="no image of class"):
        read = LabelledImages.from_dataset(part)
    assert read.classes == tuple(fake.classes)
    assert torch.equal(read.images, stacked(part))


def test_a_list_of_grey_and_transparent_images_with_names():
    grey, clear = Image.new("L", (5, 4), 90), Image.new("RGBA", (5, 4), (0, 0, 0, 0))
    read = LabelledImages.from_dataset([(grey, "fog"), (clear, "air")], background="white")
    assert read.classes == ("air", "fog") and read.labels.tolist() == [1, 0]
    assert (read.images[0] == 90).all() and (read.images[1] == 255).all()
    assert read.images.shape == (2, 3, 4, 5)


class Brightness(Dataset):
    """Normalised images; the first ones, `bright` of them, have no dark pixel."""

    def __init__(self, bright, value):
        self.bright, self.value = bright, value

    def __len__(self):
        return 100

    def __getitem__(self, index):  # never raises IndexError
        return torch.full((1, 4, 5), 1.0 if index < self.bright else self.value), 0


def test_the_range_is_that_of_the_dataset_not_of_one_image():
    read = LabelledImages.from_dataset(Brightness(bright=3, value=-1.0)).images.flatten(1)
    assert (read[:3] == 255).all() and (read[3:] == 0).all()


def test_a_range_that_later_images_leave_is_refused_not_used():
    with pytest.raises(ValueError, match=r"images must lie in 0..1; got -1..-1.*\(-1, 1\)"):
        LabelledImages.from_dataset(Brightness(bright=90, value=-1.0))
    read = LabelledImages.from_dataset(Brightness(90, -1.0), value_range=(-1, 1)).images
    assert (read[90:] == 0).all()
    with pytest.raises(ValueError, match=r"images: float32 values .*value_range="):
        LabelledImages.from_dataset(Brightness(0, 0.1))


def test_the_datasets_own_images_stay_as_they_are():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (5, 4))
    image.info["exif"] = exif.tobytes()
    assert LabelledImages.from_dataset([(image, 0)], size=2).images.shape == (1, 3, 2, 2)
    assert image.size == (5, 4) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([torch.zeros(1, 4, 4)], TypeError, r"dataset must have items \(image, label\); got a Ten"),
        ([{"image": 0, "label": 0}], TypeError, "dataset must have items .*got a dict at 0"),
        (iter([]), TypeError, "dataset must have a length"),
        ([("cat.png", 0)], TypeError, "images must be .*got a str"),
        ([(np.zeros((3, 9, 3), np.uint8), 0)], ValueError, 'layout="NCHW" or layout="NHWC"'),
        ([(Image.new("L", (2, 2)), (0, 1))], ValueError, "labels must have one dimension"),
        ([(Image.new("L", (2, 2)), 3)], ValueError, "labels must be 0, 1, 2"),
        ([(Image.new("F", (2, 2)), 0)], ValueError, "floating-point"),
    ],
)
def test_datasets_that_cannot_be_read(dataset, error, message):
    with pytest.raises(error, match=message):
        LabelledImages.from_dataset(dataset)

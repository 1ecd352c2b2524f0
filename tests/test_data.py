"""What cgan_utils.data promises, held against torchvision's reader and published facts."""

import pytest
import torch
import torchvision

from cgan_utils import (
    FASHION_MNIST_CLASSES,
    LabelledImages,
    data_folder,
    load_fashion_mnist,
    normalize,
)


@pytest.fixture(scope="session")
def real():
    """Both splits; downloaded if this machine has none yet."""
    return {split: load_fashion_mnist(split) for split in ("train", "test")}


# --- the dataset ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "size"), [("train", 60_000), ("test", 10_000)])
def test_shapes_types_and_balanced_classes(real, split, size):
    loaded = real[split]
    assert len(loaded) == size
    assert loaded.images.shape == (size, 1, 28, 28)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)
    assert loaded.labels.bincount().tolist() == [size // 10] * 10
    assert loaded.classes == FASHION_MNIST_CLASSES


def test_published_facts_of_the_training_set(real):
    assert real["train"].classes[real["train"].labels[0]] == "Ankle boot"
    pixels = real["train"].images.flatten().bincount(minlength=256) / real["train"].images.numel()
    grey = torch.arange(256) / 255
    mean = (grey * pixels).sum()
    assert mean.item() == pytest.approx(0.2860, abs=5e-5)
    assert ((grey - mean) ** 2 * pixels).sum().sqrt().item() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same_from_the_same_folder(real, split):
    theirs = torchvision.datasets.FashionMNIST(data_folder(), train=split == "train")
    assert torch.equal(real[split].images.squeeze(1), theirs.data)
    assert torch.equal(real[split].labels, theirs.targets)
    assert list(real[split].classes) == theirs.classes


@pytest.mark.parametrize("split", ["training", "Train", "", 0, None, ["train"]])
def test_unknown_split(split):
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got"):
        load_fashion_mnist(split)


# --- normalize -----------------------------------------------------------------------------------


def test_normalize_is_torchvisions_bit_for_bit(real):
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    )
    theirs = torchvision.datasets.FashionMNIST(data_folder(), transform=transform)
    expected = torch.stack([theirs[i][0] for i in range(500)])
    assert torch.equal(normalize(real["train"].images[:500]), expected)


def test_normalize_every_grey_value():
    grey = torch.arange(256, dtype=torch.uint8)
    before = grey.clone()
    values = normalize(grey)
    assert values.dtype == torch.float32
    assert (values[0], values[255]) == (-1, 1)
    assert (values.diff() > 0).all()
    assert torch.equal(((values + 1) / 2 * 255).round().to(torch.uint8), grey)
    assert torch.equal(grey, before)


@pytest.mark.parametrize("images", [torch.zeros(2, 3), torch.zeros(2).long(), [0, 255], None])
def test_normalize_takes_uint8_only(images):
    with pytest.raises(TypeError, match="images must be a uint8 tensor; got a "):
        normalize(images)


# --- LabelledImages ------------------------------------------------------------------------------


def labelled(images=None, labels=None, classes=("cat", "dog")):
    images = torch.zeros(3, 3, 5, 4, dtype=torch.uint8) if images is None else images
    return LabelledImages(images, torch.tensor([0, 1, 1]) if labels is None else labels, classes)


def test_any_images_will_do():
    pets = labelled()
    assert len(pets) == 3
    with pytest.raises(AttributeError):
        pets.labels = torch.tensor([0, 0, 0])


def test_subsets(real):
    train = real["train"]
    order = torch.tensor([5, 0, 5])
    for indices in order, order.tolist(), slice(7), train.labels == 3:
        part = train[indices]
        assert isinstance(part, LabelledImages)
        assert torch.equal(part.images, train.images[indices])
        assert torch.equal(part.labels, train.labels[indices])
        assert part.classes == train.classes
    for nothing in 0, slice(0), train.labels == 10:
        with pytest.raises(ValueError, match="images must have shape"):
            train[nothing]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"images": [[0]]}, TypeError, r"images must be a torch.uint8 tensor .*got a list"),
        ({"images": torch.zeros(3, 1, 2, 2)}, TypeError, "images must .*got a torch.float32"),
        ({"images": torch.zeros(3, 2, 2).byte()}, ValueError, r"images must .*got \(3, 2, 2\)"),
        ({"images": torch.zeros(3, 1, 0, 2).byte()}, ValueError, "images must .*not empty"),
        ({"images": torch.zeros(0, 1, 2, 2).byte()}, ValueError, "images must .*not empty"),
        ({"images": torch.zeros(2, 1, 2, 2).byte()}, ValueError, "got 3 labels for 2 images"),
        ({"labels": [0, 1, 1]}, TypeError, "labels must be a torch.int64 tensor .*got a list"),
        ({"labels": torch.tensor([0, 1, 1]).int()}, TypeError, "labels must .*got a torch.int32"),
        ({"labels": torch.tensor([[0], [1], [1]])}, ValueError, r"labels must .*got \(3, 1\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "got 2 labels for 3 images"),
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"labels must lie in 0..1; got 0..2"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, r"labels must lie in .*got -1..1"),
        ({"classes": ["cat", "dog"]}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": ("cat", 1)}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": "ab"}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": ("cat",)}, ValueError, r"labels must lie in 0..0; got 0..1"),
    ],
)
def test_images_labels_and_classes_must_fit(wrong, error, message):
    with pytest.raises(error, match=message):
        labelled(**wrong)


# --- subset --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [("Bag", "Trouser"), [8, 1], torch.tensor([8, 1]), ("Bag", 1)])
def test_subset_keeps_classes_in_the_order_given(real, classes):
    test = real["test"]
    part = test.subset(classes)
    assert part.classes == ("Bag", "Trouser")
    for number, old in enumerate((8, 1)):
        assert torch.equal(part.images[part.labels == number], test.images[test.labels == old])
    assert len(part) == 2000


def test_subset_of_one_class_and_of_all(real):
    assert real["test"].subset("Coat").classes == ("Coat",)
    whole = real["test"].subset(FASHION_MNIST_CLASSES)
    assert torch.equal(whole.images, real["test"].images)
    assert torch.equal(whole.labels, real["test"].labels)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (("cat", "cow"), ValueError, "classes: there is no class 'cow'; there are cat, dog, eel"),
        ([0, 3], ValueError, "classes must lie in 0..2; got 3"),
        (["cat", 0], ValueError, "classes must be distinct"),
        ([], ValueError, "classes must be distinct, at least one"),
        (["eel", "cat"], ValueError, "classes: there is no image of eel"),
        ([0.5], TypeError, "classes must be whole numbers or class names; got 0.5"),
        (None, TypeError, "classes must be whole numbers or class names; got None"),
    ],
)
def test_subset_refuses_what_it_cannot_keep(classes, error, message):
    with pytest.raises(error, match=message):
        labelled(classes=("cat", "dog", "eel")).subset(classes)

"""What users hand in and the package cannot use is refused: by name, and with what is allowed.

Arguments are checked where they enter. `train`, `sample`, `evaluate`, `CGANConfig` and
`load_pretrained` have tables of their own beside their other tests.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import cgan_utils as cg
from cgan_utils.checkpoints import latest_checkpoint
from cgan_utils.classifier import Classifier

CONFIG = cg.CGANConfig.original()
STATE = cg.TrainingState.create(CONFIG)
GENERATOR = STATE.generator
IMAGES = torch.zeros(10, 1, 28, 28) - 1
ZERO_TO_ONE = torch.rand(10, 1, 28, 28).round()  # as ToTensor leaves images
LABELS = torch.arange(10)
METRICS = {
    "classifier": Classifier(),
    "images": IMAGES.repeat(2, 1, 1, 1),
    "labels": LABELS.repeat(2),
}
OWN = {"images": IMAGES.byte(), "labels": LABELS, "classes": CONFIG.classes}
Z = torch.zeros(10, CONFIG.latent_dim)

CASES = [
    (cg.LabelledImages, {**OWN, "images": IMAGES}, TypeError, "images"),
    (cg.LabelledImages, {**OWN, "images": IMAGES.byte()[0]}, ValueError, "images"),
    (cg.LabelledImages, {**OWN, "labels": LABELS[:9]}, ValueError, "labels"),
    (cg.LabelledImages, {**OWN, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.LabelledImages, {**OWN, "labels": LABELS.int()}, TypeError, "labels"),
    (cg.LabelledImages, {**OWN, "classes": ["a"] * 10}, TypeError, "classes"),
    (cg.LabelledImages.from_folder, {"path": "nowhere"}, FileNotFoundError, "path"),
    (cg.LabelledImages.from_folder, {"path": "."}, ValueError, "path"),
    (cg.LabelledImages.from_folder, {"path": 3}, TypeError, "path"),
    (cg.LabelledImages.from_folder, {"path": ".", "size": 0}, ValueError, "size"),
    (cg.LabelledImages.from_folder, {"path": ".", "size": (8, 8, 3)}, ValueError, "size"),
    (cg.LabelledImages.from_folder, {"path": ".", "channels": 4}, ValueError, "channels"),
    (cg.LabelledImages.from_folder, {"path": ".", "background": "sky"}, ValueError, "background"),
    (cg.LabelledImages.from_dataset, {"dataset": 3}, TypeError, "dataset"),
    (cg.LabelledImages.from_dataset, {"dataset": []}, TypeError, "dataset"),
    (cg.LabelledImages.from_dataset, {"dataset": [{"image": 0, "label": 0}]}, TypeError, "dataset"),
    (cg.LabelledImages.from_arrays, {"images": [[0]], "labels": LABELS}, TypeError, "images"),
    (cg.LabelledImages.from_arrays, {"images": IMAGES, "labels": LABELS[:9]}, ValueError, "labels"),
    (cg.normalize, {"images": IMAGES}, TypeError, "images"),  # twice
    (cg.normalize, {"images": np.zeros((1, 28, 28), np.uint8)}, TypeError, "images"),
    (cg.load_fashion_mnist, {"split": "validation"}, ValueError, "split"),
    (cg.load_fashion_mnist, {"folder": 3}, TypeError, "folder"),
    (cg.choose_device, {"device": "gpu"}, ValueError, "device"),
    (cg.sample_latent, {"count": -1, "latent_dim": 3}, ValueError, "count"),
    (cg.sample_latent, {"count": 1.5, "latent_dim": 3}, TypeError, "count"),
    (cg.sample_latent, {"count": 1, "latent_dim": 3, "seed": 2**32}, ValueError, "seed"),
    (cg.class_grid, {"generator": GENERATOR, "columns": 0}, ValueError, "columns"),
    (cg.class_grid, {"generator": None}, TypeError, "generator"),
    (cg.load_checkpoint, {"path": "nowhere.pt"}, FileNotFoundError, "path"),
    (cg.load_checkpoint, {"path": None}, TypeError, "path"),
    (cg.save_checkpoint, {"path": "x.pt", "state": GENERATOR}, TypeError, "state"),
    (cg.save_checkpoint, {"path": "x.pt", "state": STATE, "keep_last": 0}, ValueError, "keep_last"),
    (latest_checkpoint, {"folder": 3}, TypeError, "folder"),
    (cg.TrainingState.create, {"config": {}}, TypeError, "config"),
    (cg.TrainingState.create, {"config": CONFIG, "seed": -3}, ValueError, "seed"),
    (cg.load_classifier, {"device": "moon"}, ValueError, "device"),
    (cg.compute_metrics, {**METRICS, "classifier": None}, TypeError, "classifier"),
    (cg.compute_metrics, {**METRICS, "labels": LABELS}, ValueError, "labels"),
    (cg.compute_metrics, {**METRICS, "labels": LABELS.repeat(2) * 0}, ValueError, "labels"),
    (cg.compute_metrics, {**METRICS, "images": ZERO_TO_ONE.repeat(2, 1, 1, 1)}, ValueError,
     "images"),
    (cg.compute_metrics, {**METRICS, "real": IMAGES}, TypeError, "real"),
    (cg.train_classifier, {"images": IMAGES.byte(), "labels": LABELS}, TypeError, "images"),
    (cg.train_classifier, {"images": ZERO_TO_ONE, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES + 3, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES * math.nan, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS[:9]}, ValueError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "epochs": 0}, ValueError, "epochs"),
    (cg.train_classifier, {"images": IMAGES[:1], "labels": LABELS[:1]}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "batch_size": 1}, ValueError,
     "batch_size"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "classes": ("a",)}, ValueError,
     "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "classes": ["a"] * 10}, TypeError,
     "classes"),
    (cg.frechet_distance, {"real": Z, "generated": Z[:1]}, ValueError, "generated"),
    (cg.density_and_coverage, {"real": Z, "generated": Z, "k": 10}, ValueError, "real"),
    (cg.format_report, {"report": {"gan_test": 1}}, ValueError, "report"),
    (cg.show, {"figure": Figure(), "alt": " "}, ValueError, "alt"),
    (cg.plot_images, {"images": IMAGES.byte(), "titles": ["a"] * 10}, TypeError, "images"),
    (cg.plot_images, {"images": IMAGES, "titles": ["a"] * 9}, ValueError, "titles"),
    (cg.plot_class_grid, {"images": IMAGES, "classes": ["a", "b", "c"]}, ValueError, "images"),
    (cg.plot_class_grid, {"images": IMAGES * math.nan, "classes": ["a"]}, ValueError, "images"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "error", "name"), CASES)
def test_bad_arguments_are_named(function, arguments, error, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=rf"\b{name}\b"):
        function(**arguments)
    assert not list(tmp_path.iterdir())  # refused before any work was done


# -- errors that PyTorch would not notice, or that it names well enough


def test_a_label_out_of_range_never_passes_a_network():
    """Inside losses, steps and networks nothing is checked: PyTorch refuses these by itself."""
    discriminator = STATE.discriminator
    for labels in (LABELS + 1, LABELS - 1, LABELS[:9], LABELS.float(), LABELS[:, None]):
        with pytest.raises((IndexError, RuntimeError)):
            GENERATOR(Z, labels)
        with pytest.raises((IndexError, RuntimeError)):
            discriminator(IMAGES, labels)
    for images in (IMAGES.double(), IMAGES[..., 1:], IMAGES[1:]):
        with pytest.raises(RuntimeError):
            discriminator(images, LABELS)


NUMBERS_AND_NAMES = st.one_of(st.integers(0, 9), st.sampled_from(CONFIG.classes))


@settings(deadline=None, max_examples=30)
@given(labels=st.lists(NUMBERS_AND_NAMES, max_size=40), seed=st.integers(0, 2**32 - 1))
def test_sample_gives_one_finite_image_in_range_per_label(labels, seed):
    images = cg.sample(GENERATOR, labels, seed=seed)
    assert images.shape == (len(labels), 1, 28, 28)
    assert images.isfinite().all() and (images.abs() <= 1).all()


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    batch_size=st.integers(1, 50),
    threads=st.integers(1, 2),
)
def test_batch_size_and_threads_do_not_change_the_images(labels, batch_size, threads):
    whole = cg.sample(GENERATOR, labels, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        split = cg.sample(GENERATOR, labels, seed=1, batch_size=batch_size)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(whole, split, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(
        st.integers().filter(lambda n: not 0 <= n <= 9),
        st.text().filter(lambda name: name not in CONFIG.classes),
        st.floats(),
        st.none(),
        st.booleans(),
    )
)
def test_no_label_is_guessed(label):
    with pytest.raises((TypeError, ValueError), match="labels"):
        cg.sample(GENERATOR, [label])


SIZES = ("embedding_dim", "latent_dim", "hidden_dim", "epochs", "batch_size")


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.fixed_dictionaries({name: st.integers(1, 10**6) for name in SIZES}),
    learning_rate=st.floats(0, 10, exclude_min=True),
    betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    classes=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True).map(tuple),
)
def test_every_allowed_config_survives_a_dict(sizes, learning_rate, betas, classes):
    fields = dict(**sizes, learning_rate=learning_rate, betas=betas, classes=classes)
    config = CONFIG.replace(**fields)
    assert cg.CGANConfig.from_dict(config.to_dict()) == config
    assert all(getattr(config, name) == value for name, value in fields.items())


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SIZES), st.one_of(st.integers(max_value=0), st.floats(), st.text()))
def test_no_size_is_guessed(field, value):
    with pytest.raises((TypeError, ValueError), match=field):
        CONFIG.replace(**{field: value})

"""Every public function refuses what it cannot use: it names the argument, and what is allowed."""

import ast
import inspect
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import cgan_utils as cg
from cgan_utils.judge import Classifier

CONFIG = cg.CGANConfig.original()
STATE = cg.TrainingState.create(CONFIG)
GENERATOR = STATE.generator
IMAGES = torch.zeros(10, 1, 28, 28) - 1
DARK_AT_0 = torch.rand(10, 1, 28, 28).round()  # as ToTensor leaves images
LABELS = torch.arange(10)
HISTORY = {"loss_d": [1.0], "loss_g": [1.0], "d_real": [0.5], "d_fake": [0.5]}
RUN = {"title": "a", "measures": torch.zeros(9, 4), "images": IMAGES, "classes": ["a", "b"]}
JUDGED = {"judge": Classifier(), "images": IMAGES.repeat(2, 1, 1, 1), "labels": LABELS.repeat(2)}

DATA = cg.LabelledImages(IMAGES.byte(), LABELS, CONFIG.classes)
OWN = {"images": IMAGES.byte(), "labels": LABELS, "classes": CONFIG.classes}
LOGITS = torch.zeros(10)
BATCH = {"state": STATE, "images": IMAGES, "labels": LABELS, "fake_labels": LABELS}
Z = torch.zeros(10, CONFIG.latent_dim)
D_STEP, G_STEP = {**BATCH, "fake": IMAGES}, {"state": STATE, "fake": IMAGES, "fake_labels": LABELS}
REAL_LOGITS, REAL_IMAGES = (tensor.clone().requires_grad_() for tensor in (LOGITS, IMAGES))
TUNED = {"state": cg.TrainingState.create(cg.CGANConfig.tuned())}
EPOCH = {"state": STATE, "data": DATA, "order": LABELS, "bar": None, "engine": None}

CASES = [
    (cg.discriminator_loss, {"real_logits": None, "fake_logits": LOGITS}, TypeError, "real_logits"),
    (cg.discriminator_loss, {"real_logits": LOGITS, "fake_logits": 0.5}, TypeError, "fake_logits"),
    (cg.discriminator_loss, {"real_logits": LOGITS[:0], "fake_logits": LOGITS}, ValueError,
     "real_logits"),
    (cg.discriminator_loss, {"real_logits": LOGITS, "fake_logits": LOGITS[:, None]}, ValueError,
     "fake_logits"),
    (cg.generator_loss, {"fake_logits": LABELS}, TypeError, "fake_logits"),
    (cg.generator_loss, {"fake_logits": torch.zeros(())}, ValueError, "fake_logits"),
    (cg.gradient_penalty, {"real_logits": LOGITS, "images": IMAGES}, ValueError, "images"),
    (cg.gradient_penalty, {"real_logits": LABELS, "images": IMAGES}, TypeError, "real_logits"),
    (cg.gradient_penalty, {"real_logits": LOGITS, "images": None}, TypeError, "images"),
    (cg.gradient_penalty, {"real_logits": REAL_LOGITS, "images": REAL_IMAGES}, ValueError,
     "real_logits"),  # not computed from them
    (cg.discriminator_step, {**D_STEP, "state": None}, TypeError, "state"),
    (cg.discriminator_step, {**D_STEP, "images": IMAGES.byte()}, TypeError, "images"),
    (cg.discriminator_step, {**D_STEP, "images": IMAGES[..., :27]}, ValueError, "images"),
    (cg.discriminator_step, {**D_STEP, "labels": LABELS[:9]}, ValueError, "labels"),
    (cg.discriminator_step, {**D_STEP, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.discriminator_step, {**D_STEP, "labels": LABELS[:9], "fake_labels": torch.arange(11) % 10},
     ValueError, "labels"),  # as many labels as images in all
    (cg.discriminator_step, {**D_STEP, "fake_labels": LABELS[:9]}, ValueError, "fake_labels"),
    (cg.discriminator_step, {**D_STEP, "fake_labels": LABELS - 1}, ValueError, "fake_labels"),
    (cg.discriminator_step, {**D_STEP, "fake": IMAGES[0]}, ValueError, "fake"),
    (cg.discriminator_step, {**D_STEP, "fake": IMAGES.double()}, TypeError, "fake"),
    (cg.generator_step, {**G_STEP, "fake": IMAGES.double()}, TypeError, "fake"),
    (cg.discriminator_step, {**D_STEP, "fake_labels": LABELS.float()}, TypeError, "fake_labels"),
    (cg.generator_step, {**G_STEP, "state": {}}, TypeError, "state"),
    (cg.generator_step, {**G_STEP, "fake": IMAGES[:0]}, ValueError, "fake"),
    (cg.generator_step, {**G_STEP, "fake_labels": [0] * 10}, TypeError, "fake_labels"),
    (cg.generator_step, {**G_STEP, "fake_labels": LABELS + 1}, ValueError, "fake_labels"),
    (cg.update_average, {"state": GENERATOR}, TypeError, "state"),
    (cg.training_step, {**BATCH, "z": Z, "state": 3}, TypeError, "state"),
    (cg.training_step, {**BATCH, "z": Z[:, 1:]}, ValueError, "z"),
    (cg.training_step, {**BATCH, "z": LABELS}, TypeError, "z"),
    (cg.training_step, {**BATCH, "z": Z, "images": IMAGES.byte()}, TypeError, "images"),
    (cg.training_step, {**BATCH, "z": Z, "fake_labels": LABELS - 1}, ValueError, "fake_labels"),
    (cg.training_step, {**BATCH, "z": Z, "labels": LABELS[:9]}, ValueError,
     r"labels must have shape \(10"),
    (cg.training_step, {**BATCH, "z": Z[:9]}, ValueError, "fake_labels"),
    (cg.discriminator_step, {**D_STEP, **TUNED, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.discriminator_step, {**D_STEP, **TUNED, "labels": LABELS[1:]}, ValueError, "labels"),
    (cg.draw_batch, {"state": STATE, "data": IMAGES, "batch": LABELS}, TypeError, "data"),
    (cg.draw_batch, {"state": STATE, "data": DATA, "batch": [0, 1]}, TypeError, "batch"),
    (cg.draw_batch, {"state": STATE, "data": DATA, "batch": LABELS + 1}, ValueError, "batch"),
    (cg.draw_batch, {"state": STATE, "data": DATA, "batch": LABELS[:0]}, ValueError, "batch"),
    (cg.train_epoch, {**EPOCH, "state": None}, TypeError, "state"),
    (cg.train_epoch, {**EPOCH, "data": None}, TypeError, "data"),
    (cg.train_epoch, {**EPOCH, "order": LABELS - 1}, ValueError, "order"),
    (cg.train_epoch, {**EPOCH, "order": LABELS.float()}, TypeError, "order"),
    (cg.train_epoch, EPOCH, TypeError, "state.measures"),  # `train` makes them
    (GENERATOR, {"z": Z, "labels": LABELS.tolist()}, TypeError, "labels"),
    (GENERATOR, {"z": Z, "labels": LABELS[:9]}, ValueError, "labels"),
    (GENERATOR, {"z": Z, "labels": LABELS + 1}, ValueError, "labels"),
    (GENERATOR, {"z": Z[0], "labels": LABELS}, ValueError, "z"),
    (GENERATOR, {"z": Z.double(), "labels": LABELS}, TypeError, "z"),
    (GENERATOR.draw, {"z": Z.double(), "embedded": torch.zeros(10, 10)}, TypeError, "z"),
    (GENERATOR.draw, {"z": Z, "embedded": torch.zeros(10, 10).double()}, TypeError, "embedded"),
    (GENERATOR.draw, {"z": Z, "embedded": LABELS}, TypeError, "embedded"),
    (GENERATOR.draw, {"z": Z, "embedded": torch.zeros(10, 9)}, ValueError, "embedded"),
    (STATE.discriminator, {"images": IMAGES.byte(), "labels": LABELS}, TypeError, "images"),
    (STATE.discriminator, {"images": IMAGES.double(), "labels": LABELS}, TypeError, "images"),
    (STATE.discriminator, {"images": IMAGES, "labels": LABELS - 1}, ValueError, "labels"),
    (STATE.discriminator, {"images": IMAGES}, TypeError, "labels"),  # it has no projection
    (cg.mismatch_loss, {"logits": Z, "labels": LABELS[:3]}, ValueError, "labels"),
    (cg.mismatch_loss, {"logits": Z[:, :9], "labels": LABELS}, ValueError, "labels"),
    (cg.mismatch_loss, {"logits": Z[0], "labels": LABELS}, ValueError, "logits"),
    (cg.mismatch_loss, {"logits": Z.int(), "labels": LABELS}, TypeError, "logits"),
    (cg.mismatch_loss, {"logits": Z[:, :1], "labels": LABELS * 0}, ValueError, "logits"),
    (cg.ConditionalNorm, {"config": {}, "units": 8}, TypeError, "config"),
    (cg.ConditionalNorm, {"config": CONFIG, "units": 0}, ValueError, "units"),
    (cg.SharedPatches, {"config": {}}, TypeError, "config"),
    (cg.FineDetail, {"config": {}, "inputs": 784}, TypeError, "config"),
    (cg.FineDetail, {"config": CONFIG, "inputs": CONFIG.image_size - 1}, ValueError, "inputs"),
    (cg.pixel_weights, {"weights": IMAGES.byte()}, TypeError, "weights"),
    (cg.pixel_weights, {"weights": IMAGES[0]}, ValueError, "weights"),
    (cg.neighbour_differences, {"images": IMAGES.byte()}, TypeError, "images"),
    (cg.neighbour_differences, {"images": IMAGES[0]}, ValueError, "images"),
    (cg.edge_histogram, {"differences": IMAGES.byte()}, TypeError, "differences"),
    (cg.edge_histogram, {"differences": IMAGES[0]}, ValueError, "differences"),
    (partial(cg.show_source, 3), {}, TypeError, "objects"),
    (cg.show, {"figure": Figure(), "alt": "A picture.", "colours": 0}, ValueError, "colours"),
    (cg.show, {"figure": Figure(), "alt": "A picture.", "colours": 300}, ValueError, "colours"),
    (cg.plot_atlas, {"grids": {1: IMAGES}, "classes": "ab", "across": 0}, ValueError, "across"),
    (cg.format_report, {"report": []}, TypeError, "report"),
    (cg.format_report, {"report": {"gan_test": 1}}, ValueError, "report"),
    (cg.plot_images, {"images": IMAGES, "titles": ["a"] * 10, "columns": 0}, ValueError, "columns"),
    (cg.LabelledImages, {**OWN, "images": IMAGES}, TypeError, "images"),
    (cg.LabelledImages, {**OWN, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.LabelledImages, {**OWN, "classes": ["a"] * 10}, TypeError, "classes"),
    (cg.normalize, {"images": IMAGES}, TypeError, "images"),
    (cg.normalize, {"images": np.zeros((1, 28, 28), np.uint8)}, TypeError, "images"),
    (cg.normalize, {"images": None}, TypeError, "images"),
    (cg.load_fashion_mnist, {"split": "validation"}, ValueError, "split"),
    (cg.load_fashion_mnist, {"split": 3}, ValueError, "split"),
    (cg.load_fashion_mnist, {"folder": 3}, TypeError, "folder"),
    (cg.choose_device, {"device": "gpu"}, ValueError, "device"),
    (cg.draw_latent, {"count": -1, "latent_dim": 3}, ValueError, "count"),
    (cg.draw_latent, {"count": 1.5, "latent_dim": 3}, TypeError, "count"),
    (cg.draw_latent, {"count": 1, "latent_dim": 0}, ValueError, "latent_dim"),
    (cg.draw_latent, {"count": 1, "latent_dim": 3, "seed": 2**32}, ValueError, "seed"),
    (cg.draw_latent, {"count": 1, "latent_dim": 3, "seed": 2**64}, ValueError, "seed"),
    (cg.class_grid, {"generator": GENERATOR, "columns": 0}, ValueError, "columns"),
    (cg.class_grid, {"generator": GENERATOR, "columns": "ten"}, TypeError, "columns"),
    (cg.class_grid, {"generator": None}, TypeError, "generator"),
    (cg.load_checkpoint, {"path": "nowhere.pt"}, FileNotFoundError, "path"),
    (cg.load_checkpoint, {"path": None}, TypeError, "path"),
    (cg.save_checkpoint, {"path": "x.pt", "state": GENERATOR}, TypeError, "state"),
    (cg.TrainingState.create, {"config": {}}, TypeError, "config"),
    (cg.TrainingState.create, {"config": CONFIG, "seed": -3}, ValueError, "seed"),
    (cg.TrainingState.create, {"config": CONFIG, "device": "moon"}, ValueError, "device"),
    (cg.Generator, {"config": 3}, TypeError, "config"),
    (cg.Discriminator, {"config": None}, TypeError, "config"),
    (cg.pretrained_record, {"recipe": "best"}, ValueError, "recipe"),
    (cg.pretrained_record, {"recipe": None}, TypeError, "recipe"),
    (cg.load_judge, {"device": "moon"}, ValueError, "device"),
    (cg.plot_images, {"images": IMAGES.byte(), "titles": ["a"] * 10}, TypeError, "images"),
    (cg.plot_images, {"images": IMAGES[0], "titles": ["a"]}, ValueError, "images"),
    (cg.plot_images, {"images": IMAGES, "titles": ["a"] * 9}, ValueError, "titles"),
    (cg.plot_images, {"images": IMAGES[:0], "titles": []}, ValueError, "images"),
    (cg.plot_class_grid, {"images": IMAGES, "classes": ["a", "b", "c"]}, ValueError, "images"),
    (cg.plot_class_grid, {"images": IMAGES * math.nan, "classes": ["a"]}, ValueError, "images"),
    (cg.plot_class_grid, {"images": [1, 2], "classes": ["a"]}, TypeError, "images"),
    (cg.plot_run, {**RUN, "measures": torch.zeros(9, 3)}, ValueError, "measures"),
    (cg.plot_run, {**RUN, "measures": None}, ValueError, "measures"),
    (cg.plot_run, {**RUN, "healthy": torch.zeros(0, 4)}, ValueError, "healthy"),
    (cg.plot_run, {**RUN, "images": IMAGES[:9]}, ValueError, "images"),
    (cg.plot_atlas, {"grids": {}, "classes": ["a"]}, ValueError, "grids"),
    (cg.plot_atlas, {"grids": {1: IMAGES, 2: IMAGES[:5]}, "classes": ["a"]}, ValueError, "grids"),
    (cg.judge_images, {**JUDGED, "judge": None}, TypeError, "judge"),
    (cg.judge_images, {**JUDGED, "labels": LABELS}, ValueError, "labels"),
    (cg.judge_images, {**JUDGED, "labels": LABELS.repeat(3)}, ValueError, "labels"),
    (cg.judge_images, {**JUDGED, "images": DARK_AT_0.repeat(2, 1, 1, 1)}, ValueError, "images"),
    (cg.save_rolling, {"folder": None, "state": None}, TypeError, "folder"),
    (cg.save_rolling, {"folder": "x", "state": None}, TypeError, "state"),
    (cg.newest_checkpoint, {"folder": 3}, TypeError, "folder"),
    (cg.train_classifier, {"images": IMAGES.byte(), "labels": LABELS}, TypeError, "images"),
    (cg.train_classifier, {"images": IMAGES.double(), "labels": LABELS}, TypeError, "images"),
    (cg.train_classifier, {"images": IMAGES[..., 1:], "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": DARK_AT_0, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES + 3, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES * math.nan, "labels": LABELS}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "images"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS[:9]}, ValueError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS + 1}, ValueError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS.float()}, TypeError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": [0] * 10}, TypeError, "labels"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "seed": -1}, ValueError, "seed"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "epochs": 0}, ValueError, "epochs"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "batch_size": 0}, ValueError,
     "batch_size"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "learning_rate": "fast"}, TypeError,
     "learning_rate"),
    (cg.train_classifier, {"images": IMAGES, "labels": LABELS, "learning_rate": 0}, ValueError,
     "learning_rate"),
    (cg.frechet_distance, {"real": Z, "generated": Z[:1]}, ValueError, "generated"),
    (cg.density_and_coverage, {"real": Z, "generated": Z, "k": 10}, ValueError, "real"),
    (cg.density_and_coverage, {"real": Z, "generated": Z, "k": 0}, ValueError, "k"),
    (cg.show, {"figure": None, "alt": "A picture."}, TypeError, "figure"),
    (cg.show, {"figure": Figure(), "alt": " "}, ValueError, "alt"),
    (cg.plot_matrix, {"matrix": torch.zeros(3, 2), "classes": "abc", "label": "", "limits": (0, 1)},
     ValueError, "matrix"),
    (cg.plot_class_bars, {"values": {"a": 1}, "ceilings": {"b": 1}, "label": ""},
     ValueError, "ceilings"),
    (cg.plot_history, {"history": {}}, ValueError, "history"),
    (cg.plot_history, {"history": HISTORY | {"loss_g": []}}, ValueError, "history"),
]  # fmt: skip


ELSEWHERE = {  # in a table beside its other tests
    "CGANConfig": "test_config",
    "evaluate": "test_evaluation",
    "load_pretrained": "test_pretrained",
    "sample": "test_sampling",
    "train": "test_training",
}


def test_no_public_function_is_left_out():
    here = {getattr(getattr(f, "func", f), "__qualname__", "").split(".")[0] for f, *_ in CASES}
    takes_arguments = {
        name
        for name in cg.__all__
        if callable(thing := getattr(cg, name)) and inspect.signature(thing).parameters
    }
    assert takes_arguments == (here & takes_arguments) | ELSEWHERE.keys()
    for name, module in ELSEWHERE.items():
        assert name in refused_in(Path(__file__).with_name(f"{module}.py"))


def refused_in(path):
    """The names that a test file uses within `with pytest.raises(...):`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    refused = [line for b in blocks if "pytest.raises" in ast.unparse(b.items) for line in b.body]
    nodes = [node for line in refused for node in ast.walk(line)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(("function", "arguments", "error", "name"), CASES)
def test_bad_arguments_are_named(function, arguments, error, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=rf"\b{name}\b"):
        function(**arguments)
    assert not list(tmp_path.iterdir())  # refused before any work was done


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

"""The benchmarks run, and the committed results fit the recipes.

The tests look at correctness only: one that looks at the clock fails on a busy machine.
"""

import functools
import json
import math

import busy_neighbour
import check_gpu
import compilers
import convolutional
import discriminator_overfitting
import evaluation_sensitivity
import gan_train_by_size
import latent_dim
import loading
import numpy as np
import other_data
import pytest
import quality
import recipe_steps
import scaling
import search
import speed
import torch
from torch.utils.flop_counter import FlopCounterMode

import cgan_utils as cg
from cgan_utils import evaluation, training
from cgan_utils.engines.cuda_graph import CUDAGraph
from cgan_utils.engines.eager import Eager
from cgan_utils.evaluation import METRICS
from cgan_utils.models import create_networks
from cgan_utils.sampling import generator_of

pytestmark = pytest.mark.slow  # runs the benchmarks in short


def test_the_limit_counts_every_product_that_a_step_uses():
    config = cg.CGANConfig.original()
    state = cg.TrainingState.create(config)
    images, labels = torch.zeros(32, 1, 28, 28), torch.zeros(32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        cg.training_step(state, images, labels, torch.zeros(32, 100), labels)
    # Nobody reads the gradients of z, of D's pixels in its own update (of real and of generated
    # images), and of the label's embedding in G's.
    unused = 2 * 256 * (32 * 100 + 64 * 784 + 32 * 10)
    products = speed.products_of_a_step(config, 0)
    assert sum(2 * math.prod(shape) for shape in products) == counter.get_total_flops() - unused


def test_products_and_steps_take_turns_in_blocks_of_a_period(monkeypatch):
    """Products of 2, 1, 1, 1 s by one library and four times that by our C; a step takes 10 s."""
    now, turns, costs = [0.0], [], {1000: 2, 500: 1}

    def spend(name, seconds):
        turns.append(name)
        now[0] += seconds

    def training():
        while True:
            spend("step", 10)
            yield

    def multiply(a, b):
        spend("some", costs[b.shape[1]])

    def in_c(pairs):
        return lambda: spend("C", 4 * costs[pairs[0][1].shape[1]])

    def timed(function):
        start = now[0]
        function()
        return now[0] - start

    monkeypatch.setitem(speed.RECIPES, "tuned", (cg.CGANConfig.tuned(), 4))
    monkeypatch.setattr(speed, "products_of_a_step", lambda _, n: [(1000, 1000, 1000 // (n + 1))])
    monkeypatch.setattr(speed, "libraries", lambda device: {"some": multiply})
    monkeypatch.setattr(speed, "in_compiled_c", in_c)
    monkeypatch.setattr(speed, "timed", timed)
    loops = {"eager": training()}
    rows, limits = speed.measure_recipe("tuned", loops, 4, 2, torch.device("cpu"))
    assert rows["eager"]["min_ms"] == rows["eager"]["median_ms"] == 10_000
    assert limits["gflop_per_step"] == 1.25
    milliseconds = {name: row["median_ms"] for name, row in limits["products"].items()}
    assert milliseconds == {"some": 1250, "compiled C": 5000, "some, one thread": 1250}
    assert limits["products"]["some"]["gflop_per_s"] == 1
    block = ["step"] * 4 + ["some"] * 4 + ["C"] * 4 + ["some"] * 4
    assert turns == ["step"] + block * 2  # the first step is timed apart


def test_products_are_computed_one_after_another_on_as_many_threads_as_named(monkeypatch):
    seen = []

    def multiply(a, b):
        seen.append((a.shape[0], torch.get_num_threads()))

    monkeypatch.setattr(speed, "libraries", lambda device: {"some": multiply})
    loops = speed.product_loops([[(2, 3, 4), (5, 6, 7)]], 1, torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("some", "some, one thread"):
            next(loops[name])
    finally:
        torch.set_num_threads(threads)
    assert seen == [(2, 2), (5, 2), (2, 1), (5, 1)]


def test_products_on_a_gpu_are_replays_of_a_graph_of_all_of_them(cuda, monkeypatch):
    cuda.current_device = torch.device("cpu")
    factors_of = speed.factors_of
    monkeypatch.setattr(speed, "factors_of", lambda products, _: factors_of(products, "cpu"))
    kinds = [[(64, 128, 32), (32, 64, 128)], [(8, 8, 8)]]
    (loop,) = speed.product_loops(kinds, 3, torch.device("cuda")).values()
    for _ in range(4):
        next(loop)
    assert [len(graph.calls) for graph in cuda.graphs] == [2, 1] and cuda.replays == 4


@pytest.mark.parametrize("recipe", cg.CGANConfig.recipes)
def test_the_timed_loop_trains_as_train_does(recipe, tiny_config, tiny_data):
    config = cg.CGANConfig.recipes[recipe](**vars(tiny_config))
    if recipe == "tuned":
        config = config.replace(ema_decay=0.9, r1_gamma=1.0, learning_rate_decay=True)
    states = []

    def create_engine(sample, step):
        def engine(state, data, batch):
            states.append(state)
            return step(state, *sample(state, data, batch))

        return engine

    loop = speed.package_steps(config, tiny_data, config.batch_size, create_engine)
    for _ in range(5):  # beyond the first epoch
        next(loop)
    state = states[-1]
    assert state.step == 5 and state.stats.shape == (4, 4) and state.stats.all()
    expected = cg.train(config, tiny_data, "cpu", "eager", max_steps=5, progress=False)
    assert state.schedule == expected.schedule
    (group,), (expected_group,) = (s.generator_optimizer.param_groups for s in (state, expected))
    assert group["lr"] == expected_group["lr"]


@pytest.mark.slow
def test_the_short_form_runs_and_writes_its_table(tmp_path, capsys):
    path = tmp_path / "speed.json"
    speed.main(path, short=True)
    results = json.loads(path.read_text())
    assert {"post", "eager"} <= set(results["training"])
    assert {"eager"} < set(results["tuned_training"]) < set(results["training"])
    assert results["machine"]["threads"] == torch.get_num_threads()
    for rows in (results["training"], results["tuned_training"]):
        for row in rows.values():
            assert 0 < row["min_ms"] <= row["median_ms"]
    table = capsys.readouterr().out
    assert "post" in table and "images/s" in table


@pytest.mark.process
def test_the_short_form_of_scaling_runs_on_two_processes(tmp_path):
    path = tmp_path / "scaling.json"
    scaling.main(path, short=True)
    results = json.loads(path.read_text())
    for rows in results["training"].values():
        assert rows.keys() == results["batches"].keys() == scaling.VARIANTS.keys()
        assert min(row["min_ms"] for row in rows.values()) > 0
    committed = json.loads(scaling.RESULTS.read_text())
    assert results["gradient_bytes"] == committed["gradient_bytes"]
    assert results["batch_size"] == committed["batch_size"]


@pytest.mark.parametrize("recipe", cg.CGANConfig.recipes)
def test_gradient_bytes_are_those_of_the_networks(recipe):
    config = getattr(cg.CGANConfig, recipe)()
    generator, discriminator, _ = create_networks(config)
    expected = {
        name: sum(p.nbytes for p in network.parameters())
        for name, network in (("Generator", generator), ("Discriminator", discriminator))
    }
    assert scaling.gradient_bytes(config) == expected


@pytest.mark.slow
def test_the_short_form_of_gan_train_by_size_runs_and_writes_its_table(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "new" / "sizes.json"
    quick = functools.partial(cg.train_classifier, epochs=1)
    monkeypatch.setattr(evaluation, "train_classifier", quick)
    monkeypatch.setattr(evaluation, "distribution_metrics", lambda *_: {})  # which it leaves out
    gan_train_by_size.main(path, short=True)
    ((size, accuracy),) = json.loads(path.read_text())["gan_train"].items()
    assert size == "10000" and 0.5 < accuracy["generated"] < accuracy["real"]
    assert f"{accuracy['generated'] / accuracy['real']:.1%}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_short_form_of_evaluation_sensitivity_measures_once(tmp_path, monkeypatch):
    path = tmp_path / "new" / "sensitivity.json"
    quick = functools.partial(cg.train_classifier, epochs=1)
    monkeypatch.setattr(cg, "train_classifier", quick)
    monkeypatch.setattr(evaluation_sensitivity, "COUNT", 2000)
    evaluation_sensitivity.main(path, short=True)
    results, committed = json.loads(path.read_text()), read_committed("evaluation_sensitivity")
    assert results.keys() == committed.keys()
    assert results["seeds"]["0"].keys() == METRICS.keys()
    assert results["sizes"]["1000"] == metrics_by(results, "evaluation classifier")
    for name in ("evaluation classifier", "MLP"):  # the other one is hardly trained here
        entry = results["classifiers"][name]
        for better in ("real", "tuned"):
            assert 5 * entry[better]["frechet"] < entry["original"]["frechet"]
        assert entry["accuracy"] > 0.7
    monkeypatch.setattr(cg, "train", None)
    evaluation_sensitivity.main(path, short=True)  # nothing is left to measure
    assert json.loads(path.read_text()) == results


def test_committed_evaluation_sensitivity_is_of_one_classifier_and_many_seeds():
    results = read_committed("evaluation_sensitivity")
    assert results["sizes"]["10000"] == metrics_by(results, "evaluation classifier")
    assert [int(size) for size in results["sizes"]] == [*evaluation_sensitivity.SIZES]
    assert all(entry["accuracy"] > 0.89 for entry in results["classifiers"].values())
    assert len(results["seeds"]) >= 3 and len(results["ten_images"]) == 8
    assert all(run.keys() == METRICS.keys() for run in results["seeds"].values())


def read_committed(name):
    folder = evaluation_sensitivity.RESULTS.parent
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def metrics_by(results, classifier):
    entry = results["classifiers"][classifier]
    return {name: metrics for name, metrics in entry.items() if name != "accuracy"}


def test_the_neighbour_computes_and_ends_with_the_measurement():
    with pytest.raises(ZeroDivisionError), busy_neighbour.neighbour() as process:
        assert process.poll() is None
        raise ZeroDivisionError
    assert process.poll() is not None


def test_the_engines_choice_is_compared_with_the_better_of_one_thread_and_all():
    assert busy_neighbour.ratio({"one": 4.0, "all": 2.0, "chosen": 3.0}) == 1.5
    assert busy_neighbour.ratio({"one": 2.0, "all": 14.0, "chosen": 2.0}) == 1
    results = json.loads(busy_neighbour.RESULTS.read_text(encoding="utf-8"))
    for recipe, ratios in results["chosen_to_better"].items():
        for name, value in ratios.items():
            row = results["milliseconds"][name][recipe]["compiled"]["default"]
            assert value == pytest.approx(busy_neighbour.ratio(row), abs=0.001)


@pytest.mark.process
def test_the_short_form_of_loading_reads_the_same_images_as_pillow(tmp_path):
    path = tmp_path / "loading.json"
    loading.main(path, short=True)
    results, committed = json.loads(path.read_text()), json.loads(loading.RESULTS.read_text())
    assert results.keys() == committed.keys()
    for each in (results, committed):
        assert each["result_bytes"] == each["images"] * 3 * loading.SIZE**2
        assert len(each["ratios"]) == len(each["seconds"]["Pillow"]) and min(each["ratios"]) > 0
    loading.write_images(tmp_path, 20)
    ours = loading.read_with_package(tmp_path).images
    theirs = torch.tensor(np.stack(loading.read_with_pillow(tmp_path))).permute(0, 3, 1, 2)
    assert torch.equal(ours, theirs)


def test_a_shipped_generator_says_what_trained_it(tmp_path, monkeypatch):
    generator, records = cg.Generator(cg.CGANConfig.original()), []
    monkeypatch.setattr(quality, "GRIDS", tmp_path)
    monkeypatch.setattr(quality, "machine", lambda device: f"a machine with {device}")
    monkeypatch.setattr(quality, "save_pretrained", lambda *parts: records.append(parts[2]))
    monkeypatch.setattr(cg, "load_pretrained", lambda recipe: generator)
    monkeypatch.setattr(cg, "evaluate", lambda *_, **__: {})
    quality.ship_generator("original", generator, seed=0, seconds=1, device="cuda")
    assert {record["machine"] for record in records} == {"a machine with cuda"}


@pytest.mark.parametrize("option", [{"recipe": "best"}, {"seeds": (3, 3)}, {"ship": True}])
def test_quality_names_the_option_it_cannot_use(option, monkeypatch):
    monkeypatch.setattr(quality, "measure", None)  # refused before any work
    with pytest.raises(SystemExit, match=f"--{next(iter(option))}"):
        quality.main(epochs=1, **option)


def test_quality_writes_the_named_file_and_keeps_its_other_recipes(tmp_path, monkeypatch):
    path, trained = tmp_path / "new" / "some.json", []
    summary, real = {"mean": 0.5, "std": 0.1}, dict.fromkeys(METRICS, 0.9)

    def measure(*arguments):
        trained.append(arguments)
        return {"metrics": dict.fromkeys(METRICS, summary), "real": real}

    monkeypatch.setattr(quality, "measure", measure)
    quality.main("original", (0, 1), output=path)
    quality.main("tuned", (0, 1, 2), epochs=6, output=path)
    assert [arguments[:3] for arguments in trained] == [
        ("original", cg.CGANConfig.original(), (0, 1)),
        ("tuned", cg.CGANConfig.tuned().replace(epochs=6), (0, 1, 2)),
    ]
    assert list(json.loads(path.read_text())) == ["original", "tuned"]


@pytest.fixture
def few_images(monkeypatch):
    """96 training images, and a stored report in place of an evaluation."""
    few = cg.load_fashion_mnist("train")[:96]
    report = cg.pretrained.load_record("tuned")["metrics"]
    for metrics in (report, report["real"]):  # stored before there were more metrics
        metrics.update(dict.fromkeys(METRICS, 0.5) | metrics)
    monkeypatch.setattr(cg, "load_fashion_mnist", lambda split: few)
    monkeypatch.setattr(cg, "evaluate", lambda *_, **__: report)
    return report


@pytest.mark.slow
def test_quality_trains_the_recipe_for_the_given_epochs(few_images):
    config = cg.CGANConfig.tuned().replace(epochs=2)
    result = quality.measure("tuned", config, (0, 1))
    assert result["config"] == cg.CGANConfig.tuned().replace(epochs=2).to_dict()
    assert set(result["metrics"]) == set(result["real"]) == set(METRICS)
    for summaries in result["history"].values():
        assert len(summaries) == 2
        assert len(set(summaries[0]["per_seed"])) == 2


@pytest.mark.slow
def test_recipe_steps_measure_once_and_save_the_images(few_images, tmp_path, monkeypatch):
    path = tmp_path / "steps.json"
    monkeypatch.setattr(recipe_steps, "RESULTS", path)
    monkeypatch.setattr(recipe_steps, "EPOCHS", {"steps": 1, "without": 1})
    recipe_steps.main(seeds=(0,))
    results = json.loads(path.read_text())
    expected = [(group, name) for group, name, _ in recipe_steps.recipes()]
    assert [(group, name) for group in recipe_steps.EPOCHS for name in results[group]] == expected
    for group, name in expected:
        assert results[group][name]["seeds"]["0"]["gan_test"] == round(few_images["gan_test"], 5)
    images = {file.stem.replace("_", " ") for file in (tmp_path / "steps").glob("*.png")}
    assert images == set(results["steps"])
    monkeypatch.setattr(cg, "train", None)
    recipe_steps.main(seeds=(0,))  # nothing is left to train
    assert json.loads(path.read_text()) == results


@pytest.mark.parametrize(
    ("name", "recipes", "changes", "fewest_seeds", "metrics"),
    [
        ("quality", {"original", "tuned"}, {}, 3, 6),
        ("tuned_short", {"tuned"}, {"epochs": 6}, 3, 6),
        ("original_long", {"original"}, {"epochs": 40}, 3, 9),  # measured with those added since
    ],
)
def test_results_hold_the_bands_of_their_values(name, recipes, changes, fewest_seeds, metrics):
    path = quality.RESULTS.with_name(f"{name}.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert set(results) == recipes
    for recipe, result in results.items():
        config = getattr(cg.CGANConfig, recipe)().replace(**changes)
        assert result["config"] == config.to_dict(), "measure the recipe again: it has changed"
        summaries = [
            *result["metrics"].items(),
            *((k, each) for k, v in result["per_class"].items() for each in v.values()),
            *((k, each) for k, v in result["history"].items() for each in v),
        ]
        assert len(summaries) == metrics + 3 * 10 + 4 * config.epochs
        assert {"gan_test", "gan_train", "frechet", "coverage"} <= set(result["metrics"])
        for metric, summary in summaries:
            assert len(summary["per_seed"]) == len(result["seeds"]) >= fewest_seeds
            low, high = summary["band"]
            width = max(summary["per_seed"]) - min(summary["per_seed"])
            assert low == pytest.approx(max(min(summary["per_seed"]) - width, 0), abs=1e-4)
            maximum = 1 if metric.startswith(("gan_", "coverage", "d_")) else math.inf
            assert high == pytest.approx(min(max(summary["per_seed"]) + width, maximum), abs=1e-4)
            assert low <= summary["mean"] <= high


def test_results_hold_every_step_of_the_recipe():
    results = json.loads(recipe_steps.RESULTS.read_text(encoding="utf-8"))
    expected = {group: {} for group in recipe_steps.EPOCHS}
    for group, name, config in recipe_steps.recipes():
        expected[group][name] = config.replace(epochs=recipe_steps.EPOCHS[group]).to_dict()
    for group, configs in expected.items():
        assert {name: entry["config"] for name, entry in results[group].items()} == configs
        for entry in results[group].values():
            assert list(entry["seeds"]) == ["0", "1", "2"]
    folder = recipe_steps.RESULTS.with_name("steps")
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {name.replace(" ", "_") for name in expected["steps"]}


def test_a_step_is_measured_with_z_of_standard_deviation_1(monkeypatch):
    config = cg.CGANConfig.tuned()
    state = cg.TrainingState.create(config)
    monkeypatch.setattr(cg, "train", lambda *_, **__: state)
    generator = recipe_steps.trained_generator(config, None, 0)
    assert generator is generator_of(state)
    labels, latent = torch.arange(10), cg.sample_latent(10, config.latent_dim)
    assert torch.equal(cg.sample(generator, labels), cg.sample(generator, labels, latent=latent))


def test_the_convolutional_networks_are_asked_by_label_and_updated_by_the_step():
    config = convolutional.ConvolutionalConfig(batch_size=4)
    state = cg.TrainingState.create(config)
    labels, z = torch.arange(4), torch.randn(4, config.latent_dim)
    images = state.generator(z, labels)
    assert images.shape == (4, 1, 28, 28) and images.abs().max() <= 1
    for network, inputs in ((state.generator, z), (state.discriminator, images.detach())):
        asked = [network(inputs, torch.full((4,), y)) for y in (0, 1)]
        assert not torch.equal(*asked)
    before = [
        network.embedding.weight.clone() for network in (state.generator, state.discriminator)
    ]
    stats = convolutional.training_step(state, images.detach(), labels, z, labels)
    assert stats.shape == (4,) and not stats.requires_grad
    after = [network.embedding.weight for network in (state.generator, state.discriminator)]
    assert not any(map(torch.equal, before, after))


def test_committed_results_of_the_convolutional_network_are_of_its_settings():
    result = read_committed("convolutional")["convolutional"]
    assert result["config"]["betas"] == [0.5, 0.999] and result["config"]["batch_size"] == 64
    assert len(result["seeds"]) == len(result["training_cpu_seconds"]) == 3
    assert all(seconds > 60 for seconds in result["training_cpu_seconds"])


def test_d_is_shown_images_that_it_was_not_trained_on(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(300) % 10, cg.FASHION_MNIST_CLASSES)
    shown, trained_on = [], []
    monkeypatch.setattr(cg, "load_fashion_mnist", lambda split: data)
    monkeypatch.setattr(discriminator_overfitting, "HELD_OUT", 100)
    monkeypatch.setattr(discriminator_overfitting, "COUNT", 50)

    def train(config, data, *_, callback, **__):
        trained_on.append(data)
        state = cg.TrainingState.create(config)
        callback(state)

    def mean_output(discriminator, images, labels):
        shown.append(images)
        return len(shown)

    monkeypatch.setattr(cg, "train", train)
    monkeypatch.setattr(discriminator_overfitting, "mean_output", mean_output)
    path = tmp_path / "overfitting.json"
    discriminator_overfitting.main(path)
    results = json.loads(path.read_text())
    assert results["original"]["outputs"] == {"training": [1], "held out": [2], "generated": [3]}
    for part, (seen, held_out) in zip(trained_on, (shown[:2], shown[3:5]), strict=True):
        assert torch.equal(part.images, images[:200])
        assert torch.equal(seen, cg.normalize(images[:50]))
        assert torch.equal(held_out, cg.normalize(images[200:250]))


def test_ds_mean_output_is_the_mean_probability():
    logits = torch.tensor([0.0, math.log(3)]).repeat(1000)
    labels = torch.arange(2000)
    output = discriminator_overfitting.mean_output(
        lambda images, labels: logits[labels], torch.zeros(2000, 1), labels
    )
    assert output == 0.625  # the mean of 1/2 and 3/4


def test_the_search_trains_nothing_on_the_images_held_out(tmp_path, monkeypatch):
    images = torch.arange(300, dtype=torch.uint8).view(300, 1, 1, 1).expand(300, 1, 28, 28) % 251
    data = cg.LabelledImages(images.clone(), torch.arange(300) % 10, cg.FASHION_MNIST_CLASSES)
    compared, path = [], tmp_path / "search.json"
    monkeypatch.setattr(cg, "load_fashion_mnist", lambda split: data)
    monkeypatch.setattr(search, "HELD_OUT", 100)
    quick = functools.partial(cg.train_classifier, epochs=1)
    monkeypatch.setattr(cg, "train_classifier", quick)
    monkeypatch.setattr(search, "train_mlp", quick)
    trained_on = []

    def train(config, data, *_, seed, **__):
        trained_on.append(data)
        return cg.TrainingState.create(config, seed)

    def compute_metrics(classifier, images, labels, real):
        compared.append(real)
        return dict.fromkeys(METRICS, 0.5)

    monkeypatch.setattr(cg, "train", train)
    monkeypatch.setattr(cg, "compute_metrics", compute_metrics)
    search.main(seeds=(0, 1), output=path)
    assert all(torch.equal(each.images, data.images[:200]) for each in trained_on)
    assert all(torch.equal(each.images, data.images[200:]) for each in compared)
    assert len(trained_on) == 2 * len(search.CANDIDATES)
    search.main(seeds=(0, 1), output=path)  # nothing is left to train
    assert len(trained_on) == 2 * len(search.CANDIDATES)


def test_committed_search_is_of_its_candidates():
    results = read_committed("search")
    for name, change in search.CANDIDATES.items():
        entry = results["candidates"][name]
        assert entry["config"] == search.BASE.replace(**change).to_dict()
        assert len(entry["seeds"]) == 3


def test_inductor_computes_what_eager_pytorch_does(tiny_config, tiny_data):
    difference = compilers.largest_difference(tiny_config, tiny_data, compilers.Inductor, 3)
    assert difference < 1e-5
    broken = type("Broken", (Eager,), {"__call__": lambda *_: torch.zeros(4)})
    assert compilers.largest_difference(tiny_config, tiny_data, broken, 3) > 1e-4


def test_committed_compilers_agree_with_eager_pytorch_and_count_their_start():
    for recipe, entry in read_committed("compilers")["recipes"].items():
        config = getattr(cg.CGANConfig, recipe)()
        assert entry["steps"] == config.epochs * -(-60_000 // config.batch_size)
        rows = entry["engines"]
        for name, row in rows.items():
            seconds = row["first_steps_s"] + entry["steps"] * row["min_ms"] / 1e3
            assert row["run_s"] == pytest.approx(seconds, abs=1)
            if name != "eager":
                most = {"original": 1e-4, "tuned": 20 * config.learning_rate}[recipe]
                assert row["largest_difference"] < most
        assert rows.keys() == compilers.ENGINES.keys()


# -- other data


OTHER_DATA = quality.read_results(other_data.RESULTS)


@pytest.mark.parametrize("name", other_data.DATA)
def test_under_the_tuned_recipe_no_class_of_other_data_is_dead_or_deaf(name):
    entry = OTHER_DATA[name]
    counts = list(entry["images"].values())
    images = torch.zeros(sum(counts), *entry["tuned"]["config"]["image_shape"], dtype=torch.uint8)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    data = cg.LabelledImages(images, labels, tuple(entry["images"]))
    for recipe in cg.CGANConfig.recipes:
        config = getattr(cg.CGANConfig, recipe)().for_data(data)  # nothing else was touched
        assert entry[recipe]["config"] == config.to_dict()
        runs = entry[recipe]["seeds"]
        assert set(runs) >= {"0", "1", "2"}
        for run in runs.values():
            assert run["spread"].keys() == run["nearest"].keys() == entry["images"].keys()
    for run in entry["tuned"]["seeds"].values():
        assert not other_data.dead_classes(run)
        assert not other_data.deaf_classes(run, entry["real_nearest"])


@pytest.mark.parametrize("name", other_data.DATA)
def test_under_the_original_recipe_no_class_of_other_data_is_dead(name):
    runs = OTHER_DATA[name]["original"]["seeds"]
    assert not any(other_data.dead_classes(run) for run in runs.values())


def test_a_long_z_can_collapse():
    """`for_data` and notebook 09 say so."""
    spread = quality.read_results(latent_dim.RESULTS)["spread"]
    short, long = (min(run["lowest"] for run in spread[n].values()) for n in ("16", "100"))
    assert long < other_data.DEAD < 4 * other_data.DEAD < short


def test_deaf_and_dead_classes_are_found():
    run = {
        "spread": {"a": 0.11, "b": 0.09, "c": 1.0},
        "nearest": {"a": 0.31, "b": 0.29, "c": 0.0},
    }
    assert other_data.dead_classes(run) == ["b"]
    assert other_data.deaf_classes(run, {"a": 0.6, "b": 0.6, "c": 0.4}) == ["b"]


def test_the_data_sets_are_what_they_are_called():
    grey, colour, drawings = (
        other_data.DATA[name]() for name in ("shapes in grey", "shapes in colour", "drawings")
    )
    for data in (grey, colour):  # flat: black and one other colour
        for image in data.images[:30]:
            assert len(image.flatten(1).unique(dim=1).T) == 2
    assert drawings.labels.bincount().tolist() == [300, 200, 100]
    assert other_data.DATA["digits"]().images.shape == (1797, 1, 8, 8)
    unequal = other_data.DATA["unequal classes"]()
    assert unequal.labels.bincount().tolist() == [3000, 300, 30]
    tinted = other_data.tinted(20)
    shown, plain = tinted.images.float(), cg.load_fashion_mnist("train")[:20].images.float()
    tints = shown.flatten(2).amax(2) / plain.flatten(2).amax(2)  # of red, green and blue
    assert (shown - plain * tints[:, :, None, None]).abs().max() <= 1


def test_measuring_other_data_resumes(tiny_config, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(other_data, "RESULTS", tmp_path / "other_data.json")
    monkeypatch.setattr(other_data, "DATA", {"tiny": lambda: tiny_data})
    monkeypatch.setattr(cg.CGANConfig, "original", classmethod(lambda cls: tiny_config))
    monkeypatch.setattr(cg.CGANConfig, "min_steps", 4)
    trained, train = [], cg.train
    monkeypatch.setattr(
        cg, "train", lambda *a, seed, **k: trained.append(seed) or train(*a, seed=seed, **k)
    )
    other_data.main((0, 1), ("original",), ("tiny",))
    other_data.main((0, 1, 2), ("original",), ("tiny",))
    assert trained == [0, 1, 2]
    results = json.loads(other_data.RESULTS.read_text())["tiny"]
    assert results["images"] == {"dark": 18, "bright": 18, "striped": 18}
    run = results["original"]["seeds"]["2"]
    state = train(tiny_config, tiny_data, "cpu", seed=2, progress=False)
    expected = cg.class_spread(state, tiny_data, 2, 200)
    assert run["spread"] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "other_data" / "tiny_original.png").exists()


# -- a GPU, emulated

CPU = torch.device("cpu")


@pytest.fixture
def gpu(cuda, monkeypatch):
    """An emulated GPU, on which "cpu" is the name of the device."""
    cuda.current_device = CPU
    monkeypatch.setattr(
        training,
        "make_engine",
        lambda name, device, steps, sample, step, set_schedule: check_gpu.CUDAGraph(
            sample, step, set_schedule=set_schedule
        ),
    )
    return cuda


class StaleGraph(CUDAGraph):
    """A graph that was recorded with its batch as a constant."""

    def __call__(self, state, data, batch):
        self.batch = getattr(self, "batch", batch)
        return super().__call__(state, data, self.batch)


def tiny_recipe(name, tiny_config):
    full = getattr(cg.CGANConfig, name)()
    sizes = ("classes", "image_shape", "embedding_dim", "latent_dim", "hidden_dim", "batch_size")
    return full.replace(**{name: getattr(tiny_config, name) for name in sizes})


@pytest.mark.parametrize("name", cg.CGANConfig.recipes)
def test_a_gpu_that_computes_the_same_passes(name, tiny_config, tiny_data, gpu, monkeypatch):
    config, data = tiny_recipe(name, tiny_config), repeated(tiny_data, 160)
    monkeypatch.setattr(torch, "compile", lambda program: program)  # which takes a minute
    found = check_gpu.step_differences(config, data, CPU)
    compiled = check_gpu.step_differences(config, data, CPU, ("compiled",))
    assert 0 < compiled["compiled_step"] < 2e-2
    found["resumed"] = check_gpu.resumed_difference(config, tiny_data, CPU, steps=12)
    found["failed_capture"] = check_gpu.failed_capture_difference(config, tiny_data, CPU)
    found["sample"] = check_gpu.sampling_difference(config, CPU)
    assert found.pop("graph_step") < 1e-3
    assert gpu.broken and set(found.values()) == {0}


@pytest.mark.parametrize("name", cg.CGANConfig.recipes)
def test_a_gpu_that_trains_on_other_images_fails(name, tiny_config, tiny_data, gpu, monkeypatch):
    config, data = tiny_recipe(name, tiny_config), repeated(tiny_data, 64)
    monkeypatch.setattr(check_gpu, "CUDAGraph", StaleGraph)
    steps = check_gpu.step_differences(config, data, CPU)
    resumed = check_gpu.resumed_difference(config, data, CPU, steps=12)
    failed = check_gpu.failures({"a": {"steps": steps, "resumed": resumed}})
    assert [line.split()[1] for line in failed] == ["graph_step", "resumed"]


def test_a_check_without_a_number_fails():
    def failures(result):
        return check_gpu.failures({"a": {"sample": 0.0}, "b": {"sample": result}})

    assert failures(0.0) == []
    assert failures(math.nan) == ["b: sample nan, at most 0.0001"]
    error = check_gpu.attempt(lambda: {}["c"])
    assert failures(error) == ["b: sample KeyError: 'c', at most 0.0001"]


def test_all_checks_run_where_some_raise(tiny_config, tiny_data, gpu, monkeypatch):
    for name, (_, period) in speed.RECIPES.items():
        monkeypatch.setitem(speed.RECIPES, name, (tiny_recipe(name, tiny_config), period))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cg, "sample", lambda *_: {}["no sample"])
    monkeypatch.setattr(check_gpu, "metrics_difference", lambda *_: 0.0)
    monkeypatch.setattr(torch, "compile", lambda program: program)
    found = check_gpu.check(repeated(tiny_data, 160), CPU)
    assert check_gpu.failures(found) == [
        f"{recipe}: sample KeyError: 'no sample', at most 0.0001" for recipe in speed.RECIPES
    ]


def test_metrics_of_other_images_differ(monkeypatch):
    data, compute, shown = cg.load_fashion_mnist("train"), cg.compute_metrics, []
    assert check_gpu.metrics_difference(data, CPU, count=300) == 0

    def darker(classifier, images, labels, real):
        shown.append(images)
        return compute(classifier, images if len(shown) == 1 else images.clamp(max=0), labels, real)

    monkeypatch.setattr(cg, "compute_metrics", darker)
    assert check_gpu.metrics_difference(data, CPU, count=300) > 2 * check_gpu.BOUNDS["metrics"]


def repeated(data, count):
    return data[torch.arange(count) % len(data)]


def test_each_way_to_capture_is_timed_or_says_what_went_wrong(
    tiny_config, tiny_data, gpu, monkeypatch
):
    for name, (_, period) in speed.RECIPES.items():
        monkeypatch.setitem(speed.RECIPES, name, (tiny_recipe(name, tiny_config), period))

    def no_compiler(program):
        raise RuntimeError("no Triton here\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    found = check_gpu.measure_captures(repeated(tiny_data, 50 * 16 + 1), CPU)
    assert len(found) == 8
    for name, result in found.items():
        if "compiled" in name:
            assert result == "RuntimeError: engine: 'compiled' does not work here: no Triton here"
        else:
            assert result["ms"] > 0
    assert gpu.replays == 2 * (50 + 3)


def test_without_fashion_mnist_random_images_are_read_like_it(tmp_path, monkeypatch):
    for owner, name in ((speed, "FashionMNIST"), (cg, "load_fashion_mnist")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    monkeypatch.setattr(cg, "data_folder", lambda: tmp_path)
    data, kind = check_gpu.training_images()
    assert kind == "random" and cg.load_fashion_mnist("train") is data
    images = speed.FashionMNIST(tmp_path, transform=lambda image: torch.tensor(np.array(image)))
    assert len(images) == len(data) == 60_000
    image, label = images[1234]
    assert torch.equal(image, data.images[1234, 0]) and label == data.labels[1234]


def test_without_a_gpu_the_check_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        check_gpu.main()

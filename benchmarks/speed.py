"""How fast does each engine train, compared with the post's loop and with the machine's limit?

    python benchmarks/speed.py            all of it, under three minutes on an idle machine
    python benchmarks/speed.py --short    a few steps of everything

trains the original recipe at batch size 32 with the post's loop and with each engine. They take
turns, so that other load on the machine slows all of them alike. Then it times sampling. Writes
results/speed.json, or the file that --output names (results/speed_cuda.json is from a GPU):
machine, versions, minimum and median over the repeats, and ratios. A ratio compares minima, the
times without interruptions.
"""

import functools
import itertools
import os
import platform
import resource
import statistics
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from quality import processor, write_results
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST
from tqdm import tqdm

import cgan_utils as cg
from cgan_utils.config import STATS
from cgan_utils.engines import make_engine
from cgan_utils.engines.codegen import compile_program
from cgan_utils.training import recipe_of, steps_per_epoch

RESULTS = Path(__file__).parent / "results" / "speed.json"
CONFIG = cg.CGANConfig.original()


def layers(config):
    """Return (inputs, outputs) of each linear layer: one list for G and one for D."""
    networks = cg.Generator(config), cg.Discriminator(config)
    return [
        [(m.in_features, m.out_features) for m in network.layers if isinstance(m, nn.Linear)]
        for network in networks
    ]


def products_of_a_step(config):
    """Return (rows, inner, columns) of every matrix product of one training step.

    There are three passes: one batch through G; the real and the generated images, twice as many,
    through D; and the generated ones through D again for G's update, which needs no gradient of D's
    weights.
    """
    n, (g, d) = config.batch_size, layers(config)
    products = []
    for network, rows, trained in ((g, n, True), (d, 2 * n, True), (d, n, False)):
        for inputs, outputs in network:
            products += [(rows, inputs, outputs), (rows, outputs, inputs)]  # forward, backward
            products += [(outputs, rows, inputs)] * trained  # gradient of the weights
    return products


def product_seconds(products, repeats, device):
    """Return the machine's limits: the time of these matrix products alone, each at its fastest.

    There is one limit per library of PyTorch: the one behind `a @ b`, and on the CPU oneDNN.
    """
    libraries = {"a @ b": torch.matmul}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        libraries["oneDNN"] = lambda a, b: linear(a, b.t(), None, "none", [], "")
    seconds = dict.fromkeys(libraries, 0)
    for (rows, inner, columns), count in Counter(products).items():
        a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
        for name, multiply in libraries.items():
            each = min(timed(lambda m=multiply, a=a, b=b: m(a, b)) for _ in range(repeats))
            seconds[name] += count * each
    return seconds


def compiled_product_seconds(products, repeats):
    """Return the limit of the compiled engine's own C kernels: all products in one program."""
    factors = [torch.randn(n, m) for r, k, c in products for n, m in ((r, k), (k, c))]
    run = compile_program(make_fx(first_elements_of_products)(*factors))
    return min(timed(lambda: run(*factors)) for _ in range(repeats))


def first_elements_of_products(*factors):
    """Return one element of each product, so that the program has a result."""
    return torch.stack([(a @ b)[0, 0] for a, b in zip(factors[::2], factors[1::2], strict=True)])


def timed(function):
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def post_steps(device, one_tensor=False, fused=False, wait=True):
    """Run the post's loop, unchanged or with some improvements; yield after each step."""
    to_range = [transforms.Resize((28, 28)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    dataset = FashionMNIST(cg.data_folder(), transform=transforms.Compose(to_range))
    g, d = cg.Generator(CONFIG).to(device), cg.Discriminator(CONFIG).to(device)
    adam_g, adam_d = (
        torch.optim.Adam(n.parameters(), CONFIG.learning_rate, fused=fused or None) for n in (g, d)
    )
    bce = nn.BCEWithLogitsLoss()
    data = cg.load_fashion_mnist("train")
    data = cg.LabelledImages(data.images.to(device), data.labels.to(device), data.classes)

    def batches():
        if not one_tensor:
            for images, labels in DataLoader(dataset, CONFIG.batch_size, shuffle=True):
                yield images.to(device), labels.to(device)
        else:
            for batch in torch.randperm(len(data)).to(device).split(CONFIG.batch_size):
                yield cg.normalize(data.images[batch]), data.labels[batch]

    while True:
        for images, labels in batches():
            one = torch.ones(len(images), device=device)
            z = torch.randn(len(images), CONFIG.latent_dim, device=device)
            fake_labels = torch.randint(10, (len(images),), device=device)
            fake = g(z, fake_labels)
            loss_d = bce(d(images, labels), one) + bce(d(fake.detach(), fake_labels), 0 * one)
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()
            loss_g = bce(d(fake, fake_labels), one)
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()
            if wait:
                loss_d.item(), loss_g.item()
            yield


def engine_steps(name, device, data):
    """Run `package_steps` of the original recipe with one engine."""
    data = cg.LabelledImages(data.images.to(device), data.labels.to(device), data.classes)
    return package_steps(
        CONFIG, data, CONFIG.batch_size, functools.partial(make_engine, name, device, 1)
    )


def package_steps(config, data, rows, create_engine):
    """Run the package's loop on `rows` images at a time; yield after each step.

    create_engine(sample, step) returns the engine to run the recipe's step with.
    """
    device, epoch_steps = data.images.device, steps_per_epoch(config, data)
    sample, step, set_schedule = recipe_of(config)
    engine = create_engine(sample, step)
    state = cg.TrainingState.create(config, 0, device)
    state.stats = torch.zeros(epoch_steps, len(STATS), device=device)

    def run_next_step(state, data, batch):
        if set_schedule is not None:
            set_schedule(state, config.epochs * epoch_steps)
        return engine(state, data, batch)

    while True:
        for batch in torch.randperm(len(data)).to(device).split(rows):
            cg.train_epoch(state, data, [batch], run_next_step)
            yield


def measure_steps(loops, steps, repeats):
    """Return milliseconds per step of each loop: `repeats` times `steps` steps, in turn."""
    seconds = {name: [] for name in loops}
    for _ in tqdm(range(repeats), disable=None):
        for name, loop in loops.items():
            next_steps = itertools.islice(loop, steps)
            seconds[name].append(timed(lambda s=next_steps: list(s)) / steps)
    return {
        name: {
            "min_ms": round(min(each) * 1e3, 3),
            "median_ms": round(statistics.median(each) * 1e3, 3),
        }
        for name, each in seconds.items()
    }


def measure_growth(data, sizes, repeats, device):
    """Time one epoch on more and more images: does the time grow in proportion?"""
    config, rows = CONFIG.replace(epochs=1, batch_size=256), {}
    for _ in range(repeats):
        for size in sizes:
            seconds = timed(lambda n=size: cg.train(config, data[:n], device, progress=False))
            rows.setdefault(size, []).append(seconds)
    return {size: round(min(each) / size * 1e6, 2) for size, each in rows.items()}


def measure_sampling(sizes, repeats, device):
    """Return the images per second of `cg.sample` for each number of images."""
    generator, rows = cg.Generator(CONFIG).to(device), {}
    for size in sizes:
        labels = torch.arange(size) % CONFIG.num_classes
        cg.sample(generator, labels[:1])
        seconds = [timed(lambda y=labels: cg.sample(generator, y)) for _ in range(repeats)]
        rows[size] = round(size / min(seconds))
    return rows


def main(output: Path = RESULTS, short: bool = False, threads: int | None = None):
    """Measure and write the results; --short only checks that everything runs."""
    if threads is not None:
        torch.set_num_threads(threads)
    steps, repeats = (2, 2) if short else (50, 20)
    device = cg.choose_device()
    data = cg.load_fashion_mnist("train")
    fast = "graph" if device.type == "cuda" else "compiled"
    loops = {
        "post": post_steps(device),
        "one tensor": post_steps(device, one_tensor=True),
        "fused Adam": post_steps(device, one_tensor=True, fused=True),
        "no waiting": post_steps(device, one_tensor=True, fused=True, wait=False),
    }
    loops |= {name: engine_steps(name, device, data) for name in ("eager", fast)}
    start_seconds = {name: timed(lambda loop=loop: next(loop)) for name, loop in loops.items()}
    ms = measure_steps(loops, steps, repeats)

    epochs = 10
    total_steps = epochs * steps_per_epoch(CONFIG, data)
    for name, row in ms.items():
        whole = start_seconds[name] + total_steps * row["min_ms"] / 1e3
        row["first_step_s"] = round(start_seconds[name], 2)
        row["images_per_s"] = round(CONFIG.batch_size / row["min_ms"] * 1e3)
        row["ten_epochs_s"] = round(whole, 1)
        row["times_post_ten_epochs"] = round(ms["post"]["ten_epochs_s"] / whole, 2)
    tries = 20 if short else 300
    products = products_of_a_step(CONFIG)
    limits = product_seconds(products, tries, device)
    if device.type == "cpu":
        limits["compiled C"] = compiled_product_seconds(products, tries)
    sizes = (1, 100) if short else (1, 10, 100, 1000, 10_000, 100_000)
    images_per_s = measure_sampling(sizes, 1 if short else 10, device)
    rows = 1024  # in a batch of `cg.sample`
    products = [(rows, *layer) for layer in layers(CONFIG)[0]]
    sampling_limits = product_seconds(products, tries, device)
    results = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "processor": processor(device),
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "steps": steps,
        "repeats": repeats,
        "training": ms,
        "matrix_products_ms": {name: round(each * 1e3, 3) for name, each in limits.items()},
        "sampling_images_per_s": images_per_s,
        "sampling_limit_images_per_s": {
            name: round(rows / each) for name, each in sampling_limits.items()
        },
        "microseconds_per_image": measure_growth(
            data, (600, 1200) if short else (6000, 20_000, 60_000), 1 if short else 2, device
        ),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    write_results(output, results)
    print_table(results)


def print_table(results):
    print(f"{'':10s}{'ms/step':>9s}{'median':>9s}{'images/s':>10s}{'10 epochs':>11s}{'x post':>8s}")
    for name, row in results["training"].items():
        print(
            f"{name:10s}{row['min_ms']:9.2f}{row['median_ms']:9.2f}{row['images_per_s']:10,d}"
            f"{row['ten_epochs_s']:9.0f} s{row['times_post_ten_epochs']:8.1f}"
        )
    for name, limit in results["matrix_products_ms"].items():
        print(f"matrix products by {name}: {limit:.2f} ms/step")
    for count, rate in results["sampling_images_per_s"].items():
        print(f"sample {int(count):7,d} images: {rate:9,d} images/s")
    for name, rate in results["sampling_limit_images_per_s"].items():
        print(f"matrix products by {name}: {rate:,d} images/s")
    for count, cost in results["microseconds_per_image"].items():
        print(f"train on {int(count):6,d} images: {cost} microseconds an image")
    print("peak memory:", results["peak_memory_mb"], "MB")


if __name__ == "__main__":
    tyro.cli(main)

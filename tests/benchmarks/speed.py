"""How fast does each engine train, set against the post's loop and the machine's limit?

    python tests/benchmarks/speed.py            all of it, under three minutes on a quiet machine
    python tests/benchmarks/speed.py --short    a few steps of everything, without compiling

trains the original recipe at batch 32 with the post's loop and with each engine, in turn, so that
whatever else the machine does hits all of them; then samples. Writes results/speed.json: machine,
versions, minimum and median of each repeat, and ratios. A ratio compares minima, the time without
interruptions.
"""

import json
import os
import platform
import resource
import statistics
import time
import types
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST
from tqdm import tqdm

import cgan_utils as cg
from cgan_utils import engines, training

RESULTS = Path(__file__).parent / "results" / "speed.json"
CONFIG = cg.CGANConfig.original()


def layers(config):
    """(inputs, outputs) of each weight matrix of G and of D."""
    networks = cg.Generator(config), cg.Discriminator(config)
    return [[layer.weight.shape[::-1] for layer in (*n.hidden, n.output)] for n in networks]


def products_of_a_step(config):
    """(rows, inner, columns) of every matrix product of one training step.

    Forward, gradient of the weights and of the input: once each for G; for D forward on real, on
    generated and, for G, on generated images again, whose step needs no gradient of D's weights.
    """
    n, (g, d) = config.batch_size, layers(config)
    products = []
    for network, times, taught in ((g, 1, 1), (d, 3, 2)):
        for inputs, outputs in network:
            products += [(n, inputs, outputs), (n, outputs, inputs)] * times
            products += [(outputs, n, inputs)] * taught
    return products


def product_seconds(products, repeats):
    """The machine's limit: these matrix products alone, each at the best speed that was seen."""
    seconds = {}
    for rows, inner, columns in set(products):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        seconds[rows, inner, columns] = min(timed(lambda a=a, b=b: a @ b) for _ in range(repeats))
    return sum(seconds[shape] for shape in products)


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def post_steps(device, one_tensor=False, fused=False, wait=True):
    """The post's loop, or with some changes; gives control back after each step."""
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
            asked = torch.randint(10, (len(images),), device=device)
            fake = g(z, asked)
            loss_d = bce(d(images, labels), one) + bce(d(fake.detach(), asked), 0 * one)
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()
            loss_g = bce(d(fake, asked), one)
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()
            if wait:
                loss_d.item(), loss_g.item()
            yield


def engine_steps(name, device, data):
    """The package's loop with one engine; gives control back after each step."""
    state = cg.TrainingState.create(CONFIG, 0, device)
    data = cg.LabelledImages(data.images.to(device), data.labels.to(device), data.classes)
    engine = engines.make_engine(name, device, 1, training.draw_batch, training.training_step)
    state.measures = torch.zeros(training.steps_per_epoch(CONFIG, data), 4, device=device)
    bar = types.SimpleNamespace(update=lambda: None)
    while True:
        for batch in torch.randperm(len(data)).to(device).split(CONFIG.batch_size):
            cg.train_epoch(state, data, batch, bar, engine)
            yield


def measure_steps(loops, device, steps, repeats):
    """Milliseconds per step of each loop, `repeats` times `steps` steps, the loops in turn."""
    seconds = {name: [] for name in loops}
    for _ in tqdm(range(repeats), disable=None):
        for name, loop in loops.items():
            start = time.perf_counter()
            for _ in range(steps):
                next(loop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - start) / steps)
    return {
        name: {
            "min_ms": round(min(each) * 1e3, 3),
            "median_ms": round(statistics.median(each) * 1e3, 3),
        }
        for name, each in seconds.items()
    }


def measure_growth(data, sizes, repeats, device):
    """One epoch of the eager engine on more and more images: does the time grow in proportion?"""
    config, rows = CONFIG.replace(epochs=1, batch_size=256), {}
    for _ in range(repeats):
        for size in sizes:
            seconds = timed(lambda n=size: cg.train(config, data[:n], device, progress=False))
            rows.setdefault(size, []).append(seconds)
    return {size: round(min(each) / size * 1e6, 2) for size, each in rows.items()}


def measure_sampling(sizes, repeats, device):
    """Images per second of `cg.sample`, by how many are asked for."""
    generator, rows = cg.Generator(CONFIG).to(device), {}
    for size in sizes:
        labels = torch.arange(size) % CONFIG.num_classes
        cg.sample(generator, labels[:1])
        seconds = [
            timed(lambda y=labels: cg.sample(generator, y)[-1:].cpu()) for _ in range(repeats)
        ]
        rows[size] = round(size / min(seconds))
    return rows


def main(output: Path = RESULTS, short: bool = False, threads: int | None = None):
    """Measure and write the results; --short only looks whether everything runs."""
    if threads is not None:
        torch.set_num_threads(threads)
    steps, repeats = (2, 2) if short else (5, 60)
    device = cg.choose_device()
    data = cg.load_fashion_mnist("train")
    fast = "graph" if device.type == "cuda" else "compiled"
    names = ["eager"] if short else ["eager", fast]
    loops = {
        "post": post_steps(device),
        "one tensor": post_steps(device, one_tensor=True),
        "fused Adam": post_steps(device, one_tensor=True, fused=True),
        "no waiting": post_steps(device, one_tensor=True, fused=True, wait=False),
    }
    loops |= {name: engine_steps(name, device, data) for name in names}
    start_seconds = {name: timed(lambda loop=loop: next(loop)) for name, loop in loops.items()}
    ms = measure_steps(loops, device, steps, repeats)

    epochs = 10
    total_steps = epochs * training.steps_per_epoch(CONFIG, data)
    for name, row in ms.items():
        whole = start_seconds[name] + total_steps * row["min_ms"] / 1e3
        row["first_step_s"] = round(start_seconds[name], 2)
        row["images_per_s"] = round(CONFIG.batch_size / row["min_ms"] * 1e3)
        row["ten_epochs_s"] = round(whole, 1)
        row["times_post_ten_epochs"] = round(ms["post"]["ten_epochs_s"] / whole, 2)
    tries = 20 if short else 300
    limit_ms = product_seconds(products_of_a_step(CONFIG), tries) * 1e3
    sizes = (1, 100) if short else (1, 10, 100, 1000, 10_000, 100_000)
    images_per_s = measure_sampling(sizes, 1 if short else 3, device)
    limit_per_image = product_seconds([(256, *layer) for layer in layers(CONFIG)[0]], tries) / 256
    results = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "steps": steps,
        "repeats": repeats,
        "training": ms,
        "matrix_products_ms": round(limit_ms, 3),
        "part_of_limit": {name: round(limit_ms / row["min_ms"], 2) for name, row in ms.items()},
        "sampling_images_per_s": images_per_s,
        "sampling_limit_images_per_s": round(1 / limit_per_image),
        "microseconds_per_image": measure_growth(
            data, (600, 1200) if short else (6000, 20_000, 60_000), 1 if short else 2, device
        ),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_table(results)


def print_table(results):
    print(f"{'':10s}{'ms/step':>9s}{'median':>9s}{'images/s':>10s}{'10 epochs':>11s}{'x post':>8s}")
    for name, row in results["training"].items():
        print(
            f"{name:10s}{row['min_ms']:9.2f}{row['median_ms']:9.2f}{row['images_per_s']:10,d}"
            f"{row['ten_epochs_s']:9.0f} s{row['times_post_ten_epochs']:8.1f}"
            f"   {results['part_of_limit'][name]:.0%} of the matrix products' speed"
        )
    for count, rate in results["sampling_images_per_s"].items():
        print(f"sample {int(count):7,d} images: {rate:9,d} images/s")
    print(f"limit of the products: {results['sampling_limit_images_per_s']:9,d} images/s")
    for count, cost in results["microseconds_per_image"].items():
        print(f"train on {int(count):6,d} images: {cost} microseconds an image")
    print("peak memory:", results["peak_memory_mb"], "MB")


if __name__ == "__main__":
    tyro.cli(main)

"""How fast does each engine train, compared with the post's loop and with the machine's limit?

    python benchmarks/speed.py            all of it, under four minutes on an idle machine
    python benchmarks/speed.py --short    a few steps of everything

trains the original recipe at batch size 32 with the post's loop and with each engine, and the tuned
one with each engine. They take turns, so that other load on the machine slows all of them alike.
The machine's limit is the time of a step's matrix products alone, of those whose result the step
uses. Then it times sampling. Writes results/speed.json, or the file that --output names
(results/speed_cuda.json is from a GPU): machine, versions, minimum and median over the repeats,
and ratios. A ratio compares minima, the times without interruptions.
"""

import functools
import itertools
import math
import os
import platform
import re
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
from cgan_utils.engines.traced import initialize_adam, tensors_of
from cgan_utils.training import recipe_of, steps_per_epoch
from cgan_utils.tuned import R1_INTERVAL

RESULTS = Path(__file__).parent / "results" / "speed.json"
CONFIG = cg.CGANConfig.original()
RECIPES = {"original": (CONFIG, 1), "tuned": (cg.CGANConfig.tuned(), R1_INTERVAL)}  # and its period
aten = torch.ops.aten
PRODUCTS = aten.mm.default, aten.addmm.default


def layers(generator):
    """Return (inputs, outputs) of each linear layer of the original recipe's generator."""
    linears = (layer for layer in generator.layers if isinstance(layer, nn.Linear))
    return [(layer.in_features, layer.out_features) for layer in linears]


def products_of_a_step(config, number):
    """Return (rows, inner, columns) of every matrix product whose result one training step uses.

    number: of the step, as some are different. PyTorch computes more: D's own update needs the
    gradient of its input only at the label's embedding, not at the pixels; G's update needs it at
    the pixels; and nothing needs that of z.
    """
    sample, step, set_schedule = recipe_of(config)
    state, rows = cg.TrainingState.create(config), torch.arange(config.batch_size)
    images = torch.zeros(len(rows), *config.image_shape, dtype=torch.uint8)
    data = cg.LabelledImages(images, rows % config.num_classes, config.classes)
    state.step = number
    initialize_adam(state)
    if set_schedule is not None:
        set_schedule(state, 1000)
    inputs = sample(state, data, rows)
    program = make_fx(lambda *_: step(state, *inputs))(*tensors_of(state), *inputs)
    program.graph.eliminate_dead_code()
    return [used_product(node) for node in program.graph.nodes if node.target in PRODUCTS]


def used_product(node):
    """Return (rows, inner, columns) of a traced matrix product; of its columns, those read."""
    a, b = (factor.meta["val"] for factor in node.args[-2:])
    columns, readers = b.shape[1], node.users
    if all(user.target is aten.slice.Tensor and user.args[1] == 1 for user in readers):
        columns = sum(user.meta["val"].shape[1] for user in readers)
    return *a.shape, columns


def libraries(device):
    """Return the names and versions of the libraries that multiply, each with its function."""
    if device.type == "cuda":
        return {f"cuBLAS of CUDA {torch.version.cuda}": torch.matmul}
    built = torch.__config__.show()

    def named(name, pattern):
        found = re.search(pattern, built)
        return f"{name} {found[1]}" if found else name

    mkl = named("MKL", r"Math Kernel Library Version ([\d.]+)")
    found = {mkl if torch.backends.mkl.is_available() else "the BLAS of PyTorch": torch.matmul}
    if torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        found[named("oneDNN", r"MKL-DNN v([\d.]+)")] = lambda a, b: linear(
            a, b.t(), None, "none", [], ""
        )
    return found


def product_seconds(products, repeats, device):
    """Return the time of these matrix products alone, one after another, by each library."""
    if device.type == "cuda":
        (name,) = libraries(device)
        return {name: captured_seconds(products, repeats, device)}
    pairs = factors_of(products, device)
    seconds = {}
    for name, multiply in libraries(device).items():
        run = functools.partial(multiply_all, pairs, multiply)
        seconds[name] = min(timed(run) for _ in range(repeats))
    return seconds


def factors_of(products, device):
    """Return the two factors of each product, random."""
    return [
        (torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device))
        for rows, inner, columns in products
    ]


def multiply_all(pairs, multiply):
    for a, b in pairs:
        multiply(a, b)


def captured_seconds(products, repeats, device, rounds=20):
    """Return the time of all products once, captured many times in one graph: a GPU's limit.

    Started one by one they would take longer to start than to compute.
    """
    pairs = factors_of(products, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the library sets itself up
        multiply_all(pairs, torch.matmul)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            multiply_all(pairs, torch.matmul)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    milliseconds = []
    for _ in range(repeats):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return min(milliseconds) / 1e3 / rounds


def compiled_product_seconds(products, repeats):
    """Return the time of the products in the compiled engine's own C: all in one program."""
    factors = list(itertools.chain(*factors_of(products, "cpu")))
    run = compile_program(make_fx(first_elements_of_products)(*factors))
    return min(timed(lambda: run(*factors)) for _ in range(repeats))


def first_elements_of_products(*factors):
    """Return one element of each product, so that the program has a result."""
    return torch.stack([(a @ b)[0, 0] for a, b in zip(factors[::2], factors[1::2], strict=True)])


def measure_limits(recipe, repeats, device):
    """Return what the matrix products of a step cost, in GFLOP, and alone take, in ms.

    A mean over the steps of a period, in which the last are alike. All of a step's products run one
    after another, by each library and by "compiled C": what disturbs one of them disturbs all.
    """
    config, period = RECIPES[recipe]
    gflop, limits = 0, Counter()
    for number, share in ((0, 1 / period), (1, 1 - 1 / period))[: min(period, 2)]:
        products = products_of_a_step(config, number)
        gflop += share * sum(2 * math.prod(shape) for shape in products) / 1e9
        seconds = product_seconds(products, repeats, device)
        if device.type == "cpu":
            seconds["compiled C"] = compiled_product_seconds(products, repeats)
        for name, each in seconds.items():
            limits[name] += share * each * 1e3
    return {
        "gflop_per_step": round(gflop, 4),
        "ms": {name: round(each, 4) for name, each in limits.items()},
        "gflop_per_s": {name: round(gflop / each * 1e3, 1) for name, each in limits.items()},
    }


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


def engine_steps(name, device, data, config=CONFIG):
    """Run `package_steps` of a recipe with one engine."""
    data = cg.LabelledImages(data.images.to(device), data.labels.to(device), data.classes)
    return package_steps(
        config, data, config.batch_size, functools.partial(make_engine, name, device, 1)
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
    """Time one epoch, run eagerly, on more and more images: does it grow in proportion?"""
    config, rows = CONFIG.replace(epochs=1, batch_size=256), {}
    for _ in range(repeats):
        for size in sizes:
            seconds = timed(
                lambda n=size: cg.train(config, data[:n], device, "eager", progress=False)
            )
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


def describe_machine(device):
    """Return what decides a timing: processor, threads, and the load that others make."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": processor(device),
        "load": round(os.getloadavg()[0], 1),  # programs that computed in the last minute
    }


def cpu_name():
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()


def measure_training(recipe, loops, steps, repeats, gflop):
    """Return a row for each loop: its time per step, and what follows from it."""
    config, _ = RECIPES[recipe]
    start_seconds = {name: timed(lambda loop=loop: next(loop)) for name, loop in loops.items()}
    rows = measure_steps(loops, steps, repeats)
    for name, row in rows.items():
        row["first_step_s"] = round(start_seconds[name], 2)
        row["images_per_s"] = round(config.batch_size / row["min_ms"] * 1e3)
        row["gflop_per_s"] = round(gflop / row["min_ms"] * 1e3, 1)
    return rows


def measure(device, short=False):
    """Return all results, ready for JSON."""
    steps, repeats, tries = (2, 2, 5) if short else (50, 20, 100)
    results = {
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "steps": steps,
        "repeats": repeats,
    }
    data = cg.load_fashion_mnist("train")
    fast = "graph" if device.type == "cuda" else "compiled"
    limits = {recipe: measure_limits(recipe, tries, device) for recipe in RECIPES}

    loops = {
        "post": post_steps(device),
        "one tensor": post_steps(device, one_tensor=True),
        "fused Adam": post_steps(device, one_tensor=True, fused=True),
        "no waiting": post_steps(device, one_tensor=True, fused=True, wait=False),
    }
    loops |= {name: engine_steps(name, device, data) for name in ("eager", fast)}
    gflop = limits["original"]["gflop_per_step"]
    rows = measure_training("original", loops, steps, repeats, gflop)
    total_steps = 10 * steps_per_epoch(CONFIG, data)
    for row in rows.values():
        row["ten_epochs_s"] = round(row["first_step_s"] + total_steps * row["min_ms"] / 1e3, 1)
    for row in rows.values():
        gain = rows["post"]["ten_epochs_s"] / row["ten_epochs_s"]
        row["times_post_ten_epochs"] = round(gain, 2)

    config, period = RECIPES["tuned"]
    loops = {name: engine_steps(name, device, data, config) for name in ("eager", fast)}
    gflop = limits["tuned"]["gflop_per_step"]
    tuned_rows = measure_training("tuned", loops, period, repeats, gflop)

    sizes = (1, 100) if short else (1, 10, 100, 1000, 10_000, 100_000)
    batch = 1024  # of `cg.sample`
    products = [(batch, *layer) for layer in layers(cg.Generator(CONFIG))]
    results |= {
        "training": rows,
        "tuned_training": tuned_rows,
        "limits": limits,
        "matrix_products_ms": limits["original"]["ms"],
        "sampling_images_per_s": measure_sampling(sizes, 1 if short else 10, device),
        "sampling_limit_images_per_s": {
            name: round(batch / each)
            for name, each in product_seconds(products, tries, device).items()
        },
        "eager_microseconds_per_image": measure_growth(
            data, (600, 1200) if short else (6000, 20_000, 60_000), 1 if short else 2, device
        ),
        "peak_memory_mb": {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024},
    }
    if device.type == "cuda":
        results["peak_memory_mb"]["device"] = torch.cuda.max_memory_allocated() // 2**20
    return results


def main(output: Path = RESULTS, short: bool = False, threads: int | None = None):
    """Measure and write the results; --short only checks that everything runs."""
    if threads is not None:
        torch.set_num_threads(threads)
    results = measure(cg.choose_device(), short)
    write_results(output, results)
    print_table(results)


def print_table(results):
    print(f"{'':10s}{'ms/step':>9s}{'median':>9s}{'images/s':>10s}{'GFLOP/s':>9s}{'x post':>8s}")
    for recipe, rows in (("", results["training"]), ("tuned, ", results["tuned_training"])):
        for name, row in rows.items():
            gain = row.get("times_post_ten_epochs", "")
            print(
                f"{recipe + name:15s}{row['min_ms']:9.2f}{row['median_ms']:9.2f}"
                f"{row['images_per_s']:10,d}{row['gflop_per_s']:9.0f}{gain:>8}"
            )
    for recipe, limits in results["limits"].items():
        print(f"{recipe}: matrix products of {limits['gflop_per_step']:.3f} GFLOP a step")
        for name, limit in limits["ms"].items():
            print(f"  by {name}: {limit:.3f} ms, {limits['gflop_per_s'][name]:.0f} GFLOP/s")
    for count, rate in results["sampling_images_per_s"].items():
        print(f"sample {int(count):7,d} images: {rate:9,d} images/s")
    for name, rate in results["sampling_limit_images_per_s"].items():
        print(f"matrix products by {name}: {rate:,d} images/s")
    for count, cost in results["eager_microseconds_per_image"].items():
        print(f"train on {int(count):6,d} images: {cost} microseconds an image")
    print("peak memory in MB:", results["peak_memory_mb"])


if __name__ == "__main__":
    tyro.cli(main)

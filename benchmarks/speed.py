"""How fast does each engine train, compared with the post's loop and with the machine's limit?

    python benchmarks/speed.py            all of it, under four minutes on an idle machine
    python benchmarks/speed.py --short    a few steps of everything

trains the original recipe at batch size 32 with the post's loop and with each engine, and the tuned
one with each engine; eagerly also on one thread. The machine's limit is the time of a step's matrix
products alone, of those whose result the step uses, by each library. Training steps and products
take turns, in blocks of as many steps, so that other load on the machine slows all of them alike.
Then it times sampling. Writes results/speed.json, or the file that --output names
(results/speed_cuda.json is from a GPU): machine, versions, minimum and median over the blocks, and
ratios. A ratio compares minima, the times without interruptions.
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
from cgan_utils.engines.threads import one_thread
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


def product_loops(kinds, period, device):
    """Return loops that compute the matrix products of a step and yield after it, by each library.

    kinds: (rows, inner, columns) of each product of a period's first step, and of the others.
    By the first library also on one thread, and by the compiled engine's own C. On a GPU there is
    one library only.
    """
    factors = [factors_of(products, device) for products in kinds]

    def loop(prepare):
        first, *others = map(prepare, factors)
        return repeated([first, *others * (period - 1)])

    if device.type == "cuda":
        (name,) = libraries(device)
        return {name: loop(captured)}
    by_library = {
        name: functools.partial(functools.partial, multiply_all, multiply)
        for name, multiply in libraries(device).items()
    }
    first, prepare = next(iter(by_library.items()))
    return {
        **{name: loop(prepare) for name, prepare in by_library.items()},
        "compiled C": loop(in_compiled_c),
        f"{first}, one thread": on_one_thread(loop(prepare)),
    }


def repeated(steps):
    """Call these functions in turn, again and again; yield after each."""
    for step in itertools.cycle(steps):
        step()
        yield


def on_one_thread(loop):
    while True:
        with one_thread():
            next(loop)
        yield


def factors_of(products, device):
    """Return the two factors of each product, random."""
    return [
        (torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device))
        for rows, inner, columns in products
    ]


def multiply_all(multiply, pairs):
    for a, b in pairs:
        multiply(a, b)


def captured(pairs):
    """Return a function that computes all products as one CUDA graph.

    Started one by one they would take longer to start than to compute.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the library sets itself up
        multiply_all(torch.matmul, pairs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        multiply_all(torch.matmul, pairs)
    graph.factors = pairs  # their memory, which every replay reads
    return graph.replay


def in_compiled_c(pairs):
    """Return a function that computes all products in the compiled engine's own C: one program."""
    factors = list(itertools.chain(*pairs))
    run = compile_program(make_fx(first_elements_of_products)(*factors))
    return lambda: run(*factors)


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


def engine_steps(name, device, data, config):
    """Run `package_steps` of a recipe with one engine."""
    data = cg.LabelledImages(data.images.to(device), data.labels.to(device), data.classes)
    return package_steps(
        config, data, config.batch_size, functools.partial(make_engine, name, device, 1)
    )


def engine_loops(device, data, config):
    """Return {name: loop} of the engines; on a CPU also eagerly on one thread."""
    fast = "graph" if device.type == "cuda" else "compiled"
    loops = {name: engine_steps(name, device, data, config) for name in ("eager", fast)}
    if device.type == "cpu":
        loops["eager, one thread"] = on_one_thread(engine_steps("eager", device, data, config))
    return loops


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
    return {name: summary(each) for name, each in seconds.items()}


def summary(seconds):
    """Return the minimum and the median in milliseconds."""
    return {
        "min_ms": round(min(seconds) * 1e3, 3),
        "median_ms": round(statistics.median(seconds) * 1e3, 3),
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
        "ghz": nominal_ghz(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": processor(device),
        "load": round(os.getloadavg()[0], 1),  # programs that computed in the last minute
    }


def cpu_name():
    return cpu_info("model name") or platform.processor() or platform.machine()


def nominal_ghz():
    """Return the clock rate that Linux reports (of a rented machine, the nominal one), or None."""
    found = cpu_info("cpu MHz")
    return round(float(found) / 1e3, 2) if found else None


def cpu_info(name):
    info = Path("/proc/cpuinfo")
    found = re.search(rf"{name}\s*: (.*)", info.read_text() if info.exists() else "")
    return found[1] if found else None


def measure_recipe(recipe, loops, steps, repeats, device):
    """Return a row for each training loop, and the limits: all take turns in blocks of `steps`."""
    config, period = RECIPES[recipe]
    kinds = [products_of_a_step(config, number) for number in range(min(period, 2))]
    first, last = (sum(2 * math.prod(each) for each in kinds[n]) / 1e9 for n in (0, -1))
    gflop = (first + (period - 1) * last) / period
    first_s = {name: round(timed(lambda loop=loop: next(loop)), 2) for name, loop in loops.items()}
    limits = product_loops(kinds, period, device)
    rows = measure_steps(loops | limits, steps, repeats)
    for row in rows.values():
        row["gflop_per_s"] = round(gflop / row["min_ms"] * 1e3, 1)
    for name in loops:
        rows[name]["first_step_s"] = first_s[name]
        rows[name]["images_per_s"] = round(config.batch_size / rows[name]["min_ms"] * 1e3)
    products = {name: rows.pop(name) for name in limits}
    return rows, {"gflop_per_step": round(gflop, 4), "products": products}


def measure(device, short=False):
    """Return all results, ready for JSON."""
    steps, repeats = (2, 2) if short else (50, 20)
    results = {
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "steps": steps,
        "repeats": repeats,
    }
    data = cg.load_fashion_mnist("train")
    loops = {
        "post": post_steps(device),
        "one tensor": post_steps(device, one_tensor=True),
        "fused Adam": post_steps(device, one_tensor=True, fused=True),
        "no waiting": post_steps(device, one_tensor=True, fused=True, wait=False),
    }
    loops |= engine_loops(device, data, CONFIG)
    rows, limits = measure_recipe("original", loops, steps, repeats, device)
    total_steps = 10 * steps_per_epoch(CONFIG, data)
    for row in rows.values():
        row["ten_epochs_s"] = round(row["first_step_s"] + total_steps * row["min_ms"] / 1e3, 1)
    for row in rows.values():
        gain = rows["post"]["ten_epochs_s"] / row["ten_epochs_s"]
        row["times_post_ten_epochs"] = round(gain, 2)

    config, period = RECIPES["tuned"]
    loops = engine_loops(device, data, config)
    tuned_rows, tuned_limits = measure_recipe("tuned", loops, period, repeats, device)

    sizes = (1, 100) if short else (1, 10, 100, 1000, 10_000, 100_000)
    batch = 1024  # of `cg.sample`
    products = [(batch, *layer) for layer in layers(cg.Generator(CONFIG))]
    loops = product_loops([products], 1, device)
    results |= {
        "training": rows,
        "tuned_training": tuned_rows,
        "limits": {"original": limits, "tuned": tuned_limits},
        "sampling_images_per_s": measure_sampling(sizes, 1 if short else 10, device),
        "sampling_limit_images_per_s": {
            name: round(batch / row["min_ms"] * 1e3)
            for name, row in measure_steps(loops, 5, repeats).items()
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
    print(f"{'':25s}{'ms/step':>9s}{'median':>9s}{'images/s':>10s}{'GFLOP/s':>9s}{'x post':>8s}")
    for recipe, rows in (("", results["training"]), ("tuned, ", results["tuned_training"])):
        for name, row in rows.items():
            gain = row.get("times_post_ten_epochs", "")
            print(
                f"{recipe + name:25s}{row['min_ms']:9.2f}{row['median_ms']:9.2f}"
                f"{row['images_per_s']:10,d}{row['gflop_per_s']:9.0f}{gain:>8}"
            )
    for recipe, limits in results["limits"].items():
        print(f"{recipe}: matrix products of {limits['gflop_per_step']:.3f} GFLOP a step")
        for name, row in limits["products"].items():
            ms = f"{row['min_ms']:.3f} ms, median {row['median_ms']:.3f}"
            print(f"  by {name}: {ms}, {row['gflop_per_s']:.0f} GFLOP/s")
    for count, rate in results["sampling_images_per_s"].items():
        print(f"sample {int(count):7,d} images: {rate:9,d} images/s")
    for name, rate in results["sampling_limit_images_per_s"].items():
        print(f"matrix products by {name}: {rate:,d} images/s")
    for count, cost in results["eager_microseconds_per_image"].items():
        print(f"train on {int(count):6,d} images: {cost} microseconds an image")
    print("peak memory in MB:", results["peak_memory_mb"])


if __name__ == "__main__":
    tyro.cli(main)

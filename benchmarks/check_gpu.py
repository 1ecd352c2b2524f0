"""Does a GPU compute what the CPU does, and how fast? All of it in one script of a few minutes.

    python benchmarks/check_gpu.py

needs a GPU and no network; without FashionMNIST it takes random images. It compares single steps
of both recipes from one state, as over many steps rounding errors grow: the CUDA graph, compiled
before or not, with eager PyTorch on the GPU, and that with the CPU. It checks a resumed run, which
has other steps in one replay, a capture that fails, sampling and metrics. Then it times what
speed.py does, whole epochs, an evaluation, and each way to capture the steps. Writes
results/gpu.json, with the card's name. Exits with 1 if a check fails.
"""

import copy
import dataclasses
import functools
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import speed
import torch
import tyro
from quality import machine, write_results
from torchvision.datasets import FashionMNIST

import cgan_utils as cg
from cgan_utils.classifier import train_classifier
from cgan_utils.config import STATS
from cgan_utils.engines.cuda_graph import CUDAGraph
from cgan_utils.engines.eager import Eager
from cgan_utils.engines.inductor import CompiledGraph
from cgan_utils.engines.traced import initialize_adam, tensors_of
from cgan_utils.training import recipe_of

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TOTAL_STEPS = 1000  # of the run that a schedule is for
# The largest differences that rounding explains. Of a step: relative, of the change of a tensor.
BOUNDS = {
    "graph_step": 1e-3,
    "compiled_step": 2e-2,
    "cpu_step": 2e-2,
    "resumed": 1e-3,
    "failed_capture": 1e-3,
    "sample": 1e-4,
    "metrics": 3e-2,  # convolutions on a GPU round to TF32
}


# -- the same results


def step_differences(config, data, device, kinds=("graph", "cpu"), steps=10):
    """Return how far single steps from one state are apart: each kind's from those of eager.

    kinds: of "graph", "compiled" and "cpu", which is eager PyTorch on the CPU. All sample what the
    eager engine samples on the device. A difference is that of the changes of one tensor, the
    larger of parameters, averages and moments, relative to the eager one's change.
    """
    sample, step, set_schedule = recipe_of(config)
    states = {
        name: cg.TrainingState.create(config, 0, "cpu" if name == "cpu" else device)
        for name in ("eager", *kinds)
    }
    sampled = []

    def sample_once(state, data, batch):
        sampled[:] = sample(state, data, batch)
        return sampled

    def sample_again(state, data, batch):
        return [tensor.cpu() for tensor in sampled]

    engines = {
        "eager": Eager(sample_once, step),
        "graph": CUDAGraph(sample, step),
        "compiled": CompiledGraph(sample, step),
        "cpu": Eager(sample_again, step),
    }
    for state in states.values():
        initialize_adam(state)
    largest = {f"{kind}_step": 0.0 for kind in kinds}
    batches = states["eager"].shuffled(len(data)).split(config.batch_size)
    for number, batch in zip(range(steps), batches, strict=False):
        before = [tensor.clone() for tensor in tensors_of(states["eager"])]
        rng = states["eager"].rng.get_state()
        changes = {}
        for name, state in states.items():
            state.step = number
            copy_tensors(before, tensors_of(state))
            if name != "cpu":
                state.rng.set_state(rng)
            if set_schedule is not None:
                set_schedule(state, TOTAL_STEPS)
            stats = engines[name](state, data, batch)
            after = zip(tensors_of(state), before, strict=True)
            changes[name] = [stats.cpu(), *((new.cpu() - old.cpu()).float() for new, old in after)]
        for name in largest:
            apart = relative_differences(changes[name.removesuffix("_step")], changes["eager"])
            largest[name] = max(largest[name], *apart)
    return largest


def copy_tensors(sources, targets):
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def relative_differences(tensors, others):
    """Return each tensor's distance from the other one, relative to the other's norm.

    By the L1 norm: where rounding decides a gradient's sign, Adam without momentum moves one
    element by the whole learning rate the other way, which is a small part of this norm.
    """
    pairs = zip(tensors, others, strict=True)
    apart = ((a - b).norm(1) / b.norm(1) if b.any() else a.norm(1) for a, b in pairs)
    return [distance.item() for distance in apart]


def resumed_difference(config, data, device, steps=40):
    """Return how far a resumed run by a CUDA graph ends from one without an interruption."""

    def run(last, checkpoint=None):
        options = {"max_steps": last, "resume_from": checkpoint, "progress": False}
        state = cg.train(config, data, device, "graph", **options)
        assert state.engine == "graph"
        return state

    whole = run(steps)
    with tempfile.TemporaryDirectory() as folder:
        path = cg.save_checkpoint(Path(folder, "part.pt"), run(steps // 2 + 1))
        resumed = run(steps, path)
    return max(
        relative_differences(*([t.float() for t in tensors_of(s)] for s in (resumed, whole)))
    )


def failed_capture_difference(config, data, device, steps=4):
    """Return how far a run whose capture fails ends from an eager one: it should go on as such."""

    def waiting_step(state, *inputs):
        stats = step(state, *inputs)
        stats[0].item()  # no graph can wait for a result
        return stats

    sample, step, set_schedule = recipe_of(config)
    states = []
    for engine in (CUDAGraph(sample, waiting_step, True), Eager(sample, step)):
        state = cg.TrainingState.create(config, 0, device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that training runs eagerly, which is slower
            for batch in state.shuffled(len(data)).split(config.batch_size)[:steps]:
                if set_schedule is not None:
                    set_schedule(state, TOTAL_STEPS)
                engine(state, data, batch)
                state.step += 1
        assert engine.name == "eager"
        states.append([tensor.float() for tensor in tensors_of(state)])
    return max(relative_differences(*states))


def sampling_difference(config, device, count=3000):
    """Return the largest difference of a pixel between images sampled on both devices."""
    generator = cg.TrainingState.create(config).generator
    labels = torch.arange(count) % config.num_classes
    here = cg.sample(generator, labels)
    there = cg.sample(copy.deepcopy(generator).to(device), labels.to(device))
    return (there.cpu() - here).abs().max().item()


def metrics_difference(data, device, count=1000):
    """Return the largest difference of a metric of the same images between both devices.

    Absolute for those that lie in [0, 1], otherwise relative.
    """
    few, others = data[:count], data[count : 2 * count]
    images = cg.normalize(few.images).cpu()
    classifier = train_classifier(
        images, few.labels.cpu(), classes=data.classes, epochs=1, progress=False
    )
    reports = []
    for where in ("cpu", device):
        network, parts = copy.deepcopy(classifier).to(where), (images, few.labels)
        reports.append(cg.compute_metrics(network, *(p.to(where) for p in parts), others))
    here, there = reports
    names = ("gan_test", "frechet", "density", "coverage", "diversity")
    return max(abs(there[name] - here[name]) / max(1, here[name]) for name in names)


def check(data, device):
    """Return the differences by recipe and check."""
    found = {}
    for recipe, (config, _) in speed.RECIPES.items():
        found[recipe] = {
            "steps": attempt(step_differences, config, data, device),
            "compiled": attempt(step_differences, config, data, device, ("compiled",)),
            "resumed": attempt(resumed_difference, config, data, device),
            "failed_capture": attempt(failed_capture_difference, config, data, device),
            "sample": attempt(sampling_difference, config, device),
        }
        print(recipe, found[recipe], flush=True)
    found["original"]["metrics"] = attempt(metrics_difference, data, device)
    if torch.cuda.device_count() > 1:  # while the first is current
        second = torch.device("cuda", 1)
        there = attempt(step_differences, speed.CONFIG, moved(data, second), second)
        found["second device"] = {"steps": there}
    return found


def attempt(function, *arguments):
    """Return the result, or the error as text: the other checks are of interest all the same."""
    try:
        return function(*arguments)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0]


def failures(found):
    """Return a line for each check that has no result, or a difference beyond its bound."""
    lines = []
    for group, checks in found.items():
        for name, result in checks.items():
            differences = result if isinstance(result, dict) else {name: result}
            for name, difference in differences.items():
                bound = BOUNDS.get(name)
                if isinstance(difference, str) or not difference <= bound:
                    lines.append(f"{group}: {name} {difference}, at most {bound}")
    return lines


# -- ways to capture the steps


def measure_captures(data, device):
    """Return the times of each recipe's CUDA graph: compiled or not, one or several steps each."""
    counts = (1, CUDAGraph.steps_a_replay)
    ways = itertools.product(speed.RECIPES, (CUDAGraph, CompiledGraph), counts)
    return {
        f"{recipe}, {engine_class.kind}, steps a replay: {count}": attempt(
            measure_capture, speed.RECIPES[recipe][0], data, device, engine_class, count
        )
        for recipe, engine_class, count in ways
    }


def measure_capture(config, data, device, engine_class, count):
    """Return the seconds of two replays with all captures, then milliseconds a step of an epoch."""
    sample, step, set_schedule = recipe_of(config)
    if set_schedule is not None:
        set_schedule = functools.partial(set_schedule, total_steps=TOTAL_STEPS)
    engine = engine_class(sample, step, set_schedule=set_schedule)
    engine.steps_a_replay = count
    state = cg.TrainingState.create(config, 0, device)
    batches = state.shuffled(len(data)).split(config.batch_size)
    state.stats = torch.zeros(len(batches), len(STATS), device=device)
    replays = engine.grouped(state, batches[: len(data) // config.batch_size // count * count])

    def train(replays):
        cg.train_epoch(state, data, replays, engine)

    start = speed.timed(lambda: train(itertools.islice(replays, 2)))
    first = state.step
    seconds = speed.timed(lambda: train(replays))
    return {
        "start_s": round(start, 2),
        "ms": round(seconds / (state.step - first) * 1e3, 4),
    }


# -- all of it


def measure_runs(data, device):
    """Return the seconds of whole epochs with the CUDA graph, and of an evaluation."""
    seconds = {}

    def run(name, function):
        start = time.perf_counter()
        result = function()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random images cannot be learned or told apart
        for recipe, epochs in (("original", 10), ("tuned", 1)):
            config = speed.RECIPES[recipe][0].replace(epochs=epochs)
            train = functools.partial(cg.train, config, data, device, "graph", progress=False)
            state = run(f"{recipe}, epochs: {epochs}", train)
        run("evaluate", functools.partial(cg.evaluate, state, data=data, progress=False))
    return seconds


def training_images():
    """Return FashionMNIST, or random images in its place, and which of them."""
    try:
        FashionMNIST(cg.data_folder())
    except RuntimeError:
        numbers = torch.Generator().manual_seed(0)
        shape = (60_000, 1, 28, 28)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers)
        data = cg.LabelledImages(images, torch.arange(len(images)) % 10, speed.CONFIG.classes)
        speed.FashionMNIST = lambda _, transform: RandomImages(data, transform)
        cg.load_fashion_mnist = lambda split: data
        return data, "random"
    return cg.load_fashion_mnist("train"), "FashionMNIST"


class RandomImages(FashionMNIST):
    """Random images that are read like torchvision's FashionMNIST, but from no file."""

    def __init__(self, data, transform):
        self.data, self.targets = data.images.squeeze(1), data.labels
        self.transform, self.target_transform = transform, None


def moved(data, device):
    return dataclasses.replace(data, images=data.images.to(device), labels=data.labels.to(device))


def card(device):
    """Return what kind of GPU it is, and its driver."""
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = None
    if shutil.which(query[0]):
        run = subprocess.run(query, capture_output=True, text=True)
        driver = run.stdout.splitlines()[0] if run.stdout else None
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": torch.cuda.device_count(),
    }


def main(output: Path = RESULTS):
    """Check, measure, and write the results; exits with 1 if a check fails or without a GPU."""
    if not torch.cuda.is_available():
        sys.exit("check_gpu.py needs a GPU that PyTorch can use by CUDA; there is none here")
    start, device = time.perf_counter(), torch.device("cuda", 0)
    data, kind = training_images()
    data = moved(data, device)
    results = {"card": card(device), "data": kind, "machine": machine(device), "bounds": BOUNDS}
    results["differences"] = check(data, device)
    for name, function in (("seconds", measure_runs), ("captures", measure_captures)):
        results[name] = attempt(function, data, device)
        print(name, results[name], flush=True)
    results["speed"] = attempt(speed.measure, device)
    results["took_s"] = round(time.perf_counter() - start)
    write_results(output, results)
    if isinstance(results["speed"], dict):
        speed.print_table(results["speed"])
    if failed := failures(results["differences"]):
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    tyro.cli(main)

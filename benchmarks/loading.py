"""How fast does `LabelledImages.from_folder` read small JPEGs, and in how much memory?

    python benchmarks/loading.py            10,000 images, about two minutes on two busy cores
    python benchmarks/loading.py --short    200 images, once

writes JPEGs of 64x64 pixels in ten classes into a temporary folder. `from_folder` and plain Pillow
(Image.open and np.asarray in a ThreadPoolExecutor, results in a list) take turns to read them; the
ratio is the median over the repeats of one's time over the other's beside it. The peak of the
memory is measured in a process that reads the folder once: the largest resident set less the one
before, over the size of the result. Writes results/loading.json, or the file that --output names.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from quality import processor, write_results

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "loading.json"
SIZE = 64


def write_images(folder, count):
    """Write JPEGs of random smooth images, as many in each of ten classes."""
    rng = np.random.default_rng(0)
    for n in range(count):
        path = folder / f"class{n % 10}" / f"{n}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIZE, SIZE)).save(path, quality=90)


def decode(path):
    with Image.open(path) as image:
        return np.asarray(image)


def read_with_pillow(folder):
    """Decode the same files in the same number of threads, and nothing else."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(decode, sorted(folder.rglob("*.jpg"))))


def read_with_package(folder):
    return cg.LabelledImages.from_folder(folder, progress=False)


def seconds(read, folder):
    start = time.perf_counter()
    read(folder)
    return time.perf_counter() - start


def peak_memory(folder):
    """Read a few images first, so that what is imported at first use does not count."""
    with tempfile.TemporaryDirectory() as few:
        write_images(Path(few), 100)
        read_with_package(Path(few))
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # Linux: resident now
    result = read_with_package(folder).images.nbytes
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    return highest - pages * resource.getpagesize(), result


def main(output: Path = RESULTS, short: bool = False, memory: Path | None = None):
    """Measure and write the results; --memory FOLDER only prints the peak and the result's size."""
    if memory is not None:
        print(*peak_memory(memory))
        return
    count, repeats = (200, 1) if short else (10_000, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count)
        times = {"from_folder": [], "Pillow": []}
        for _ in range(repeats):
            times["from_folder"].append(seconds(read_with_package, folder))
            times["Pillow"].append(seconds(read_with_pillow, folder))
        command = [sys.executable, __file__, "--memory", folder]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, result = (int(number) for number in printed.split())
    ratios = [ours / plain for ours, plain in zip(*times.values(), strict=True)]
    results = {
        "machine": {
            "processor": processor("cpu"),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {"pillow": version("pillow"), "torch": version("torch")},
        "images": count,
        "seconds": {name: [round(each, 2) for each in times[name]] for name in times},
        "ratios": [round(ratio, 2) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 2),
        "result_bytes": result,
        "peak_bytes": peak,
        "peak_over_result": round(peak / result, 2),
    }
    write_results(output, results)
    print(f"{count:,} images: {results['median_ratio']} times plain Pillow's time")
    print(f"peak memory: {results['peak_over_result']} times the result's {result:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)

"""Do the recipes generate every class of other people's images, with no hyper-parameter touched?

    python benchmarks/other_data.py --seeds 0 1 2

trains `CGANConfig.original().for_data(data)` and `.tuned().for_data(data)` on the eight data sets
below, once per seed, and writes results/other_data.json: for each class how much its images vary
with z (`class_spread`: below 0.1 it is dead) and how many are nearest to their own class's mean
(`nearest_centroid_accuracy`, also of the real images). results/other_data/ holds a grid of real
images, and one of the first seed's. A run that the file already holds for the same config is
skipped, so an interrupted measurement continues where it stopped.

Two data sets come from elsewhere: the digits of scikit-learn, and the icons of Debian's package
oxygen-icon-theme, which is downloaded into the data folder.
"""

import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from quality import machine, read_results, write_results
from sklearn.datasets import load_digits
from torchvision.utils import save_image

import cgan_utils as cg
from cgan_utils.diagnosis import DEAD, class_spread, nearest_centroid_accuracy

RESULTS = Path(__file__).parent / "results" / "other_data.json"
IMAGES = 200  # generated of each class
COLUMNS = 12  # of a saved grid


def shapes(channels, size, count=1500):
    """Discs, squares and crosses of one flat colour, anywhere on a black background."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, channels, size, size), np.uint8)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:size, :size]
    for image, label in zip(images, labels, strict=True):
        radius = rng.uniform(0.2, 0.35) * size
        centre = rng.uniform(radius, size - radius, 2)
        down, right = abs(y - centre[0]), abs(x - centre[1])
        inside = (
            down**2 + right**2 < radius**2,
            np.maximum(down, right) < 0.85 * radius,
            (np.minimum(down, right) < 0.3 * radius) & (np.maximum(down, right) < radius),
        )[label]
        image[:, inside] = rng.integers(80, 256, channels)[:, None]
    return cg.LabelledImages(
        torch.from_numpy(images), torch.from_numpy(labels), ("disc", "square", "cross")
    )


def drawn():
    """600 flat-coloured drawings of three classes in files of several sizes: notebook 09's."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for kind, count in (("boat", 300), ("house", 200), ("tree", 100)):
            (Path(folder) / kind).mkdir()
            for i in range(count):
                draw_image(kind, rng).save(Path(folder) / kind / f"{i:03d}.png")
        return cg.LabelledImages.from_folder(folder, size=24, progress=False)


def draw_image(kind, rng):
    """Draw a boat, a house or a tree, as notebook 09 does."""
    size = rng.randint(40, 60)
    image = Image.new("RGB", (size, size), _colour(rng, 170, 250))
    pen = ImageDraw.Draw(image)
    x, y = (size * rng.uniform(0.44, 0.56) for _ in range(2))
    r = size * rng.uniform(0.26, 0.36)
    first, second = _colour(rng, 10, 150), _colour(rng, 10, 150)
    if kind == "house":
        pen.rectangle([x - 0.8 * r, y, x + 0.8 * r, y + r], first)
        pen.polygon([x - r, y, x, y - r, x + r, y], second)
    elif kind == "tree":
        pen.rectangle([x - 0.2 * r, y, x + 0.2 * r, y + 1.2 * r], first)
        pen.ellipse([x - 0.8 * r, y - 1.2 * r, x + 0.8 * r, y + 0.4 * r], second)
    else:
        deck = y + 0.4 * r
        pen.polygon([x - r, deck, x + r, deck, x + 0.5 * r, y + r, x - 0.5 * r, y + r], first)
        pen.polygon([x, y + 0.3 * r, x, y - 1.2 * r, x + r, y + 0.2 * r], second)
    return image


def _colour(rng, low, high):
    return tuple(rng.randint(low, high) for _ in range(3))


def tinted(count=2000):
    """FashionMNIST's first images, each in a colour of its own."""
    data = cg.load_fashion_mnist("train")[:count]
    tints = torch.from_numpy(np.random.default_rng(0).uniform(0.3, 1, (count, 3, 1, 1))).float()
    images = (data.images * tints).round().to(torch.uint8)
    return cg.LabelledImages(images, data.labels, data.classes)


def fashion(**counts):
    """A few of FashionMNIST's classes with so many images each."""
    data = cg.load_fashion_mnist("train").subset(counts)
    rows = [(data.labels == y).nonzero().flatten() for y in range(len(counts))]
    rows = [row[:count] for row, count in zip(rows, counts.values(), strict=True)]
    return data[torch.cat(rows)]


def digits():
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    bunch = load_digits()
    return cg.LabelledImages.from_arrays(bunch.images, bunch.target, value_range=(0, 16))


def icons():
    """Four kinds of Oxygen's icons, 32 x 32 pixels, on white."""
    folder = cg.data_folder() / "oxygen-icons"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            for command in ("apt-get download oxygen-icon-theme", "dpkg-deb -x *.deb unpacked"):
                subprocess.run(command, shell=True, cwd=scratch, check=True)
            base = Path(scratch) / "unpacked/usr/share/icons/oxygen/base/32x32"
            for kind in ("apps", "devices", "mimetypes", "places"):
                files = [f for f in sorted((base / kind).glob("*.png")) if not f.is_symlink()]
                (folder / kind).mkdir(parents=True)
                for file in files:
                    shutil.copy(file, folder / kind)
    return cg.LabelledImages.from_folder(folder, 32, background="white", progress=False)


DATA = {
    "shapes in colour": lambda: shapes(3, 32),
    "shapes in grey": lambda: shapes(1, 28),
    "drawings": drawn,
    "tinted garments": tinted,
    "600 garments": lambda: fashion(Trouser=150, Sandal=150, Bag=150, Coat=150),
    "digits": digits,
    "icons": icons,
    "unequal classes": lambda: fashion(Sneaker=3000, Dress=300, Bag=30),
}


def measure(config, data, seed):
    """Train once and return what is measured of each class, and the generated class grid."""
    start = time.process_time()
    state = cg.train(config, data, "cpu", seed=seed, progress=False)
    seconds = time.process_time() - start
    labels = torch.arange(len(data.classes)).repeat_interleave(IMAGES)
    images = cg.sample(state, labels, seed)
    result = {
        "spread": class_spread(state, data, seed, IMAGES),
        "nearest": nearest_centroid_accuracy(images, labels, data),
        "d_fake": state.history["d_fake"][-1],
    }
    return rounded(result) | {"cpu_seconds": round(seconds)}, cg.class_grid(state, COLUMNS)


def first_images(data):
    """Return the first images of each class, as `class_grid` returns generated ones."""
    rows = [(data.labels == label).nonzero()[:COLUMNS, 0] for label in range(len(data.classes))]
    return cg.normalize(data.images[torch.cat(rows)])


def save_grid(images, name, kind):
    """Save a row of images for each class as results/other_data/NAME_KIND.png."""
    path = RESULTS.with_suffix("") / f"{name} {kind}.png".replace(" ", "_")
    path.parent.mkdir(exist_ok=True)
    save_image((images + 1) / 2, path, nrow=COLUMNS, padding=1, pad_value=1)


def rounded(result):
    """Round all numbers of a nested dict to four places."""
    if isinstance(result, dict):
        return {name: rounded(value) for name, value in result.items()}
    return round(result, 4)


def dead_classes(run):
    """Return the names of the classes that hardly vary with z."""
    return [name for name, spread in run["spread"].items() if spread < DEAD]


def deaf_classes(run, real):
    """Return the classes nearest to their own mean less than half as often as the real ones.

    Only classes count whose real images are nearest to it at least every second time.
    """
    return [n for n, share in run["nearest"].items() if real[n] >= 0.5 and share < real[n] / 2]


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    recipes: tuple[str, ...] = ("original", "tuned"),
    data_sets: tuple[str, ...] = tuple(DATA),
):
    """Measure what the results file does not hold yet, and write it there.

    Args:
        seeds: one training run each
        recipes: original, tuned
        data_sets: their names
    """
    for seed in seeds:
        for name in data_sets:
            data = DATA[name]()
            real = rounded(nearest_centroid_accuracy(cg.normalize(data.images), data.labels, data))
            for recipe in recipes:
                config = getattr(cg.CGANConfig, recipe)().for_data(data)
                results = read_results(RESULTS)
                entry = results.setdefault(name, {}).setdefault(recipe, {})
                if entry.get("config") == config.to_dict() and str(seed) in entry["seeds"]:
                    continue
                run, grid = measure(config, data, seed)
                if seed == seeds[0]:
                    save_grid(first_images(data), name, "real")
                    save_grid(grid, name, recipe)
                results = read_results(RESULTS)  # another process may have written
                entry = results.setdefault(name, {}).setdefault(recipe, {})
                if entry.get("config") != config.to_dict():
                    entry = results[name][recipe] = {"config": config.to_dict(), "seeds": {}}
                entry["seeds"][str(seed)] = run
                counts = data.labels.bincount(minlength=len(data.classes)).tolist()
                results[name]["images"] = dict(zip(data.classes, counts, strict=True))
                results[name]["real_nearest"] = real
                results["machine"] = machine("cpu")
                write_results(RESULTS, results)
                print(
                    f"seed {seed}  {name:18}{recipe:10}{run['cpu_seconds']:5} s"
                    f"  dead: {dead_classes(run)}  deaf: {deaf_classes(run, real)}",
                    flush=True,
                )


if __name__ == "__main__":
    tyro.cli(main)

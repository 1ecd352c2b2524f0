"""The package from a shell: `python -m cgan_utils train|sample|evaluate`, `--help` lists flags."""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import warnings
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import cuda, distributed
from torchvision.transforms.functional import to_pil_image

from ._checks import check_count, label_numbers
from ._runtime import choose_device, make_writable, runs_folder
from .checkpoints import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from .config import FASHION_MNIST_CLASSES, CGANConfig
from .data import LabelledImages, load_fashion_mnist
from .evaluation import evaluate, format_report
from .plotting import plot_class_grid
from .pretrained import load_pretrained
from .sampling import class_grid, generator_of
from .training import train


def optional(kind, metavar, default):
    """Return the type of a flag that can be left out; `default` says what then holds."""
    hint = f"(default: {default})"
    return Annotated[kind | None, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]


Switch = tyro.conf.FlagCreatePairsOff[bool]
Recipe = Literal[*sorted(CGANConfig.recipes)]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|original|tuned")]


@dataclasses.dataclass
class Images:
    """Images of your own, in place of FashionMNIST."""

    data: optional(Path, "FOLDER", "FashionMNIST") = None
    """a folder with one sub-folder of images per class"""
    size: optional(int, "PIXELS", "as the checkpoint, or as the files") = None
    """height and width to which each image is resized and cropped"""
    channels: optional(Literal[1, 3], "{1,3}", "as the checkpoint, or as the files") = None
    """1 is grey, 3 is colour"""

    def read(self, config=None, progress=True):
        """Return the folder's images, in the shape of a trained `config`; None without a folder."""
        size, channels = self.size, self.channels
        if self.data is None and (size or channels):
            raise ValueError("--size and --channels are for images of your own: name their --data")
        if config is not None:
            size, channels = size or config.image_shape[1:], channels or config.image_shape[0]
        if self.data is not None:
            return LabelledImages.from_folder(self.data, size, channels=channels, progress=progress)
        if config is not None and config.classes != FASHION_MNIST_CLASSES:
            raise ValueError(
                "--data must name the folder of the images; the checkpoint's classes are not "
                f"FashionMNIST's but {', '.join(config.classes)}"
            )
        return None


def train_command(recipe):
    """Return the command that trains this recipe; its flags are the recipe's fields."""
    recipe_class = CGANConfig.recipes[recipe]
    default = getattr(CGANConfig, recipe)()

    def command(
        config: tyro.conf.OmitArgPrefixes[recipe_class] = default,
        images: tyro.conf.OmitArgPrefixes[Images] = Images(),  # noqa: B008
        recipe: optional(Recipe, "{original,tuned}", "original") = None,
        output: optional(Path, "PATH", "<recipe>_<data>.pt in the runs folder") = None,
        device: str = "auto",
        engine: str = "auto",
        seed: optional(int, "INT", "0, or the checkpoint's") = None,
        max_steps: optional(int, "INT", "all") = None,
        resume: Switch = False,
        overwrite: Switch = False,
    ):
        """Train on FashionMNIST or on a folder and write a checkpoint.

        Ctrl-C stops early and keeps the result.

        Started by `torchrun --standalone --nproc-per-node N -m cgan_utils train`, N processes share
        each step: the batch size is of each one, and only the first writes.

        Args:
            config: The recipe's fields. Those left out are fitted to the images of --data.
            recipe: original, or tuned: notebook 06's
            output: the checkpoint, a .pt file; a folder of this name keeps the last two epochs'
            device: auto, cpu, cuda ...
            engine: auto, eager, compiled or graph: how the step is run
            seed: fixes the initial parameters, the order of the images and all noise
            max_steps: stop after this many updates
            resume: go on from the output's latest checkpoint, if any, with its fields and seed
            overwrite: start anew, and replace the checkpoints of this output
        """
        if output is None:
            data_name = "fashion_mnist" if images.data is None else images.data.resolve().name
            output = runs_folder() / f"{config.recipe}_{data_name}.pt"
        folder = output.with_suffix("")
        start = starting_point(output, resume, overwrite)
        given = given_fields(config, sys.argv)
        with _process_group(device, folder) as (device, first):
            saved = None if start is None else load_checkpoint(start)
            own = images.read(saved and saved.config, first)
            if saved is not None and recipe in (
                None,
                saved.config.recipe,
            ):  # `train` refuses others
                config = saved.config
            else:
                config = default if own is None else default.for_data(own)
            if seed is None:
                seed = 0 if saved is None else saved.seed
            with set_aside(list_checkpoints(folder) if overwrite and first else []) as remove:
                state = train(
                    config.replace(**given),
                    own or load_fashion_mnist("train"),
                    device,
                    engine,
                    seed,
                    max_steps=max_steps,
                    callback=lambda state: checkpoint_path(folder, state).exists() and remove(),
                    resume_from=start,
                    checkpoint_folder=folder if first else None,
                    progress=first,
                )
                if first:  # also in the middle of an epoch: to go on from there
                    save_checkpoint(checkpoint_path(folder, state), state, keep_last=2)
                    remove()
                    print("checkpoint:", save_checkpoint(output, state))

    return command


def given_fields(config, arguments):
    """Return the fields of a parsed configuration that the arguments set, with their values."""
    flags = {argument.partition("=")[0].replace("-", "_") for argument in arguments}
    names = [field.name for field in dataclasses.fields(config)]
    given = [name for name in names if flags & {f"__{name}", f"__no_{name}"}]
    return {name: getattr(config, name) for name in given}


def starting_point(output, resume, overwrite):
    """Return the checkpoint to go on from, or None; raise if an earlier run would be lost."""
    folder = output.with_suffix("")
    if output.suffix != ".pt":
        raise ValueError(f"output must end in .pt, as in {output}.pt; got {output}")
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    old = [path for path in (output, *list_checkpoints(folder)) if path.exists()]
    if old and not (resume or overwrite):
        raise ValueError(
            f"output: {old[0]} is there already; go on from it with --resume, replace it with "
            "--overwrite, or choose another --output"
        )
    if not (old and resume):
        return None
    latest = latest_checkpoint(folder)
    if latest is None and old != [output]:
        raise ValueError(f"resume: no checkpoint in {folder} can be loaded; give --overwrite")
    return latest or output


@contextlib.contextmanager
def set_aside(paths):
    """Rename the checkpoints that a new run replaces; name them back if it wrote none.

    Yields a function that removes them, for when the new run has written its first.
    """
    aside = {path: path.rename(path.with_name(f"replaced-{path.name}")) for path in paths}

    def remove():
        while aside:
            aside.popitem()[1].unlink()

    try:
        yield remove
    finally:
        for path, renamed in aside.items():
            renamed.rename(path)


@contextlib.contextmanager
def _process_group(device, folder):
    """Join the other processes that torchrun started, if it did.

    Yields this process's device, and whether it is the first, the one that writes. A process that
    ends takes the others with it: torchrun sends them a signal, or their next exchange fails.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device, True
        return

    def end(*_):
        raise SystemExit(
            "ended, because another process of this run did; go on with --resume from "
            f"{latest_checkpoint(folder) or 'the start: no epoch was finished'}"
        )

    device = choose_device(device)
    if device.type == "cuda":  # one for each process
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        cuda.set_device(device)
    signal.signal(signal.SIGTERM, end)
    distributed.init_process_group("nccl" if "cuda" in str(device) else "gloo")
    try:
        yield str(device), distributed.get_rank() == 0
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("peer", "onnection", "pipe")):
            raise
        end()
    distributed.destroy_process_group()


def load_generator(name, device="cpu"):
    """Return the generator that a recipe ships with, or a checkpoint's."""
    if name in CGANConfig.recipes:
        return load_pretrained(name, device)
    return generator_of(load_checkpoint(name, device))


def sample_command(
    generator: Name,
    output: Path,
    classes: optional(tuple[str, ...], "CLASS ...", "all") = None,
    count: int = 10,
    separate: Switch = False,
    seed: int = 0,
):
    """Write generated images: one row per class, one z per column, or each into its own file.

    Args:
        generator: the file of a checkpoint, or a recipe, whose shipped generator is used
        output: the file of the figure (.png if it has no ending), or the folder of --separate
        classes: names or numbers
        count: images per class
        separate: write single PNG files such as sandal_000.png, without a figure around them
        seed: fixes the noise
    """
    network = load_generator(generator)
    known = network.config.classes
    asked = [int(c) if c.isdecimal() and c not in known else c for c in classes or known]
    numbers = label_numbers(asked, known, "classes")
    check_count("count", count)
    images = class_grid(network, count, seed).unflatten(0, (len(known), count))[numbers]
    if separate:
        output.mkdir(parents=True, exist_ok=True)
        names, pixels = file_names(known), ((images + 1) * 127.5).round().byte()
        for number, row in zip(numbers, pixels, strict=True):
            for column, image in enumerate(row):
                to_pil_image(image).save(output / f"{names[number]}_{column:03d}.png")
        print("images:", output)
        return
    figure = plot_class_grid(images.flatten(0, 1), [known[number] for number in numbers])
    output = output if output.suffix else output.with_suffix(".png")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100, bbox_inches="tight")
    print("image:", output)


def file_names(classes):
    """Return the beginning of a file name for each class, safe everywhere; no two are equal."""
    names = [re.sub(r"\W+", "-", name.lower()).strip("-") for name in classes]
    if "" in names or len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names)]
    return names


def evaluate_command(
    generator: Name,
    images: tyro.conf.OmitArgPrefixes[Images] = Images(),  # noqa: B008
    json: optional(Path, "PATH", "none") = None,
    device: str = "auto",
    seed: int = 0,
):
    """Measure a generator, beside real images.

    Args:
        generator: the file of a checkpoint, or a recipe, whose shipped generator is used
        images: images of your own, in place of FashionMNIST
        json: a file for the report with every metric
        device: auto, cpu, cuda ...
        seed: fixes the noise and the GAN-train classifier
    """
    network = load_generator(generator, device)
    if json is not None:
        make_writable(json.parent)  # before the minutes that it takes, not after them
    report = evaluate(network, seed, images.read(network.config))
    print(format_report(report))
    if json is not None:
        json.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
        print("report:", json)


def chosen_recipe(arguments):
    """The value of --recipe, which decides what other flags there are; "original" without one."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, joined = flag.partition("=")
        if name == "--recipe" and (joined or value) in CGANConfig.recipes:
            return joined or value
    return "original"


def main():
    commands = {
        "train": train_command(chosen_recipe(sys.argv)),
        "sample": sample_command,
        "evaluate": evaluate_command,
    }
    with warnings.catch_warnings():
        warnings.showwarning = lambda text, *_: print(f"warning: {text}", file=sys.stderr)
        try:
            tyro.extras.subcommand_cli_from_dict(commands, prog="python -m cgan_utils")
        except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()

"""The package from a shell: `python -m cgan_utils train|sample|evaluate`, `--help` lists flags."""

import contextlib
import os
import signal
import sys
from json import dumps
from pathlib import Path
from typing import Literal

import tyro
from torch import cuda, distributed

from ._runtime import choose_device, runs_folder
from .checkpoints import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from .config import CGANConfig
from .data import load_fashion_mnist
from .evaluation import evaluate, format_report
from .plotting import plot_class_grid
from .sampling import class_grid, generator_of
from .training import train


def train_command(recipe):
    """Return the command that trains this recipe; its flags are the recipe's fields."""
    recipe_class = CGANConfig.recipes[recipe]
    default = getattr(CGANConfig, recipe)()

    def command(
        config: tyro.conf.OmitArgPrefixes[recipe_class] = default,
        recipe: Literal[*sorted(CGANConfig.recipes)] = recipe,
        output: Path | None = None,
        device: str = "auto",
        engine: str = "auto",
        seed: int = 0,
        max_steps: int | None = None,
        resume: bool = False,
    ):
        """Train on FashionMNIST and write a checkpoint; Ctrl-C stops early and keeps the result.

        Started by `torchrun --standalone --nproc-per-node N -m cgan_utils train`, N processes share
        each step: the batch size is of each one, and only the first writes.

        Args:
            config: the recipe's fields
            recipe: original, or tuned: notebook 06's
            output: the final checkpoint, a .pt file (default: <recipe>.pt in the runs folder);
                beside it a folder of the same name keeps the last two epochs'
            device: auto, cpu, cuda ...
            engine: auto, eager, compiled or graph: how the step is run
            seed: fixes the initial parameters, the order of the images and all noise
            max_steps: stop after this many updates
            resume: go on from the latest whole checkpoint in that folder; if it has none, start
        """
        path = output or runs_folder() / f"{recipe}.pt"
        run_training(config, path, device, engine, seed, max_steps, resume)

    return command


def run_training(config, output, device, engine, seed, max_steps, resume):
    if output.suffix != ".pt":
        raise SystemExit(f"output must end in .pt, as in {output}.pt; got {output}")
    folder = output.with_suffix("")
    resume_from = latest_checkpoint(folder) if resume else None
    if resume and resume_from is None and list_checkpoints(folder):
        raise SystemExit(  # a new run would remove them
            f"resume: no checkpoint in {folder} can be loaded; to start anew, move them"
        )
    with _process_group(device, folder) as (device, first):
        state = train(
            config,
            load_fashion_mnist("train"),
            device,
            engine,
            seed,
            max_steps=max_steps,
            resume_from=resume_from,
            checkpoint_folder=folder if first else None,
            progress=first,
        )
    if first:  # also in the middle of an epoch: to go on from there
        save_checkpoint(checkpoint_path(folder, state), state, keep_last=2)
        print("checkpoint:", save_checkpoint(output, state))


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


def sample_command(
    checkpoint: tyro.conf.Positional[Path], output: Path, columns: int = 10, seed: int = 0
):
    """Write the class grid of a checkpoint's generator: one row per class, one z per column."""
    generator = generator_of(load_checkpoint(checkpoint))
    figure = plot_class_grid(class_grid(generator, columns, seed), generator.config.classes)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100, bbox_inches="tight")
    print("image:", output)


def evaluate_command(
    checkpoint: tyro.conf.Positional[Path],
    json: Path | None = None,
    device: str = "auto",
    seed: int = 0,
):
    """Measure a checkpoint's generator, beside real images; --json also writes every metric."""
    report = evaluate(load_checkpoint(checkpoint, device), seed)
    print(format_report(report))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
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
    tyro.extras.subcommand_cli_from_dict(commands, prog="python -m cgan_utils")


if __name__ == "__main__":
    main()

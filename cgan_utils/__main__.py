"""The package from a shell: `python -m cgan_utils train|sample|evaluate`, `--help` lists flags."""

from json import dumps
from pathlib import Path

import tyro

from . import (
    CGANConfig,
    class_grid,
    evaluate,
    format_report,
    load_checkpoint,
    load_fashion_mnist,
    newest_checkpoint,
    plot_class_grid,
    runs_folder,
    save_checkpoint,
    save_rolling,
    train,
)

ORIGINAL = CGANConfig.original()


def train_command(
    config: tyro.conf.OmitArgPrefixes[CGANConfig] = ORIGINAL,
    output: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    max_steps: int | None = None,
    resume: bool = False,
):
    """Train on FashionMNIST and write a checkpoint; Ctrl-C stops early and keeps what was trained.

    Args:
        config: the recipe
        output: the final checkpoint (default: original.pt in the runs folder); beside it a folder
            of the same name keeps the last two epochs'
        device: auto, cpu, cuda ...
        seed: fixes the initial weights, the order of the images and all noise
        max_steps: stop after this many updates
        resume: go on from the newest whole checkpoint in that folder, if there is one
    """
    output = output or runs_folder() / "original.pt"
    folder = output.with_suffix("")
    state = train(
        config,
        load_fashion_mnist("train"),
        device,
        seed=seed,
        max_steps=max_steps,
        resume_from=newest_checkpoint(folder) if resume else None,
        checkpoint_folder=folder,
    )
    save_rolling(folder, state)  # also in the middle of an epoch: to go on from there
    print("checkpoint:", save_checkpoint(output, state))


def sample_command(
    checkpoint: tyro.conf.Positional[Path], output: Path, columns: int = 10, seed: int = 0
):
    """Draw the class grid of a checkpoint's generator: one row per class, one z per column."""
    generator = load_checkpoint(checkpoint).generator
    images = class_grid(generator, columns, seed)
    figure = plot_class_grid(images, generator.config.classes)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100, bbox_inches="tight")
    print("picture:", output)


def evaluate_command(
    checkpoint: tyro.conf.Positional[Path],
    json: Path | None = None,
    device: str = "auto",
    seed: int = 0,
):
    """Measure a checkpoint's generator, beside real images; --json also writes every figure."""
    report = evaluate(load_checkpoint(checkpoint, device).generator, seed)
    print(format_report(report))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(dumps(report, indent=2) + "\n", encoding="utf-8")
        print("report:", json)


def main():
    tyro.extras.subcommand_cli_from_dict(
        {"train": train_command, "sample": sample_command, "evaluate": evaluate_command},
        prog="python -m cgan_utils",
    )


if __name__ == "__main__":
    main()

"""Generators that ship with the package: no training, no network.

Beside the weights in `<recipe>.pt` (half precision) lies `<recipe>.json`: config, seed, CPU time of
training, what `evaluate` measured. tests/benchmarks/quality.py --ship trained them.
"""

import json
from pathlib import Path

import torch

from ..config import CGANConfig, check_type, choose_device, write_atomically
from ..models import Generator

FOLDER = Path(__file__).parent


def load_pretrained(recipe, device="cpu"):
    """The shipped generator of a recipe, "original" or "tuned", in eval mode.

    Raises TypeError or ValueError, naming the argument, for another recipe or device.
    """
    record = pretrained_record(recipe)
    device = choose_device(device)
    weights = torch.load(FOLDER / f"{recipe}.pt", map_location=device, weights_only=True)
    generator = Generator(CGANConfig.from_dict(record["config"])).to(device)
    generator.load_state_dict(weights)  # into float32
    return generator.requires_grad_(False).eval()


def pretrained_record(recipe):
    """How a shipped generator came about: a dict with config, seed, training_cpu_seconds, figures.

    "figures" is the report of `evaluate` for the generator as it ships.
    """
    check_type("recipe", recipe, str)
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if recipe not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}; got {recipe!r}")
    return json.loads((FOLDER / f"{recipe}.json").read_text(encoding="utf-8"))


def save_pretrained(recipe, generator, record):
    """Store a generator's weights, and `record` with its config, where `load_pretrained` looks."""
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in generator.state_dict().items()
    }
    write_atomically(FOLDER / f"{recipe}.pt", lambda file: torch.save(halves, file))
    text = json.dumps({"config": generator.config.to_dict(), **record}, indent=2)
    write_atomically(FOLDER / f"{recipe}.json", lambda file: file.write(f"{text}\n".encode()))

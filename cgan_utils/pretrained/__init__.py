"""Generators that ship with the package: no training, no network.

Beside the parameters in `<recipe>.pt` (half precision) lies `<recipe>.json`: config, seed, CPU time
of training, and the report of `evaluate`. benchmarks/quality.py --ship trained them.
"""

import json
from pathlib import Path

import torch

from .._checks import check_type
from .._runtime import choose_device, default_modes, write_atomically
from ..config import CGANConfig
from ..models import Generator, create_networks

FOLDER = Path(__file__).parent


@default_modes()
def load_pretrained(recipe: str, device: str | torch.device = "cpu") -> Generator:
    """Return the shipped generator of a recipe, "original" or "tuned", in eval mode.

    Raises TypeError or ValueError, naming the argument, for another recipe or device.
    """
    record = load_record(recipe)
    device = choose_device(device)
    parameters = torch.load(FOLDER / f"{recipe}.pt", map_location=device, weights_only=True)
    generator, *_ = create_networks(CGANConfig.from_dict(record["config"]))
    generator.to(device).load_state_dict(parameters)  # into float32
    return generator.requires_grad_(False).eval()


def load_record(recipe: str) -> dict:
    """Return how a shipped generator was made: config, seed, training_cpu_seconds, metrics.

    "metrics" is the report of `evaluate` for the generator as it ships.
    """
    check_type("recipe", recipe, str)
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if recipe not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}; got {recipe!r}")
    return json.loads((FOLDER / f"{recipe}.json").read_text(encoding="utf-8"))


def save_pretrained(recipe, generator, record):
    """Store a generator's parameters, and `record` with its config, for `load_pretrained`."""
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in generator.state_dict().items()
    }
    write_atomically(FOLDER / f"{recipe}.pt", lambda file: torch.save(halves, file))
    text = json.dumps({"config": generator.config.to_dict(), **record}, indent=2)
    write_atomically(FOLDER / f"{recipe}.json", lambda file: file.write(f"{text}\n".encode()))

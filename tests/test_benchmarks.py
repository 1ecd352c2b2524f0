"""The benchmarks run, and the speed limit counts what a training step really multiplies.

Only for correctness: a test that looks at the clock fails on a busy machine.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import cgan_utils as cg

PATH = Path(__file__).parent / "benchmarks" / "speed.py"
SPEC = importlib.util.spec_from_file_location("speed", PATH)
speed = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(speed)


def test_the_limit_counts_every_product_of_a_step():
    config = cg.CGANConfig.original()
    state = cg.TrainingState.create(config)
    images, labels = torch.zeros(32, 1, 28, 28), torch.zeros(32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        cg.training_step(state, images, labels, torch.zeros(32, 100), labels)
    products = speed.products_of_a_step(config)
    assert sum(2 * math.prod(shape) for shape in products) == counter.get_total_flops()


def test_the_short_form_runs_and_writes_its_table(tmp_path, capsys):
    path = tmp_path / "speed.json"
    speed.main(path, short=True)
    results = json.loads(path.read_text())
    assert {"post", "eager"} <= set(results["training"])
    assert results["machine"]["threads"] == torch.get_num_threads()
    for row in results["training"].values():
        assert 0 < row["min_ms"] <= row["median_ms"]
    table = capsys.readouterr().out
    assert "post" in table and "images/s" in table


def test_the_short_form_of_scaling_runs_on_two_processes(tmp_path):
    path = tmp_path / "scaling.json"
    command = [sys.executable, PATH.with_name("scaling.py"), "--short", "--output", path]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads(path.read_text())
    for name, milliseconds in results["together_ms"].items():
        assert milliseconds.keys() == {"1", "2"} and min(milliseconds.values()) > 0
        config = getattr(cg.CGANConfig, name)()
        weights = [p for p in cg.Generator(config).parameters()]
        assert results["gradient_bytes"][name]["Generator"] == 4 * sum(p.numel() for p in weights)

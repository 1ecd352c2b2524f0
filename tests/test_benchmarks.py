"""The benchmarks run, and the speed limit counts what a training step really multiplies.

Only for correctness: a test that looks at the clock fails on a busy machine.
"""

import json
import math
import subprocess
import sys

import gan_train_by_size
import quality
import scaling
import speed
import torch
from torch.utils.flop_counter import FlopCounterMode

import cgan_utils as cg


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
    command = [sys.executable, scaling.__file__, "--short", "--output", path]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads(path.read_text())
    for name, milliseconds in results["together_ms"].items():
        assert milliseconds.keys() == {"1", "2"} and min(milliseconds.values()) > 0
        config = getattr(cg.CGANConfig, name)()
        weights = [p for p in cg.Generator(config).parameters()]
        assert results["gradient_bytes"][name]["Generator"] == 4 * sum(p.numel() for p in weights)


def test_the_short_form_of_gan_train_by_size_runs_and_writes_its_table(tmp_path, capsys):
    path = tmp_path / "new" / "sizes.json"
    gan_train_by_size.main(path, short=True)
    ((size, accuracy),) = json.loads(path.read_text())["gan_train"].items()
    assert size == "10000" and 0.5 < accuracy["generated"] < accuracy["real"]
    assert f"{accuracy['generated'] / accuracy['real']:.1%}" in capsys.readouterr().out


def test_a_shipped_generator_says_what_trained_it(tmp_path, monkeypatch):
    generator, records = cg.Generator(cg.CGANConfig.original()), []
    monkeypatch.setattr(quality, "GRIDS", tmp_path)
    monkeypatch.setattr(quality, "machine", lambda device: f"a machine with {device}")
    monkeypatch.setattr(quality, "save_pretrained", lambda *parts: records.append(parts[2]))
    monkeypatch.setattr(cg, "load_pretrained", lambda recipe: generator)
    monkeypatch.setattr(cg, "evaluate", lambda *_, **__: {})
    quality.ship_generator("original", generator, seed=0, seconds=1, device="cuda")
    assert {record["machine"] for record in records} == {"a machine with cuda"}

"""An emulated CUDA graph computes what the eager step does; test_engines has those on a GPU."""

import functools
import importlib
import inspect
import sys
import types

import pytest
import torch

import cgan_utils as cg
from cgan_utils import training
from cgan_utils.engines.cuda_graph import CUDAGraph
from cgan_utils.engines.eager import Eager
from cgan_utils.engines.inductor import CompiledGraph
from cgan_utils.training import recipe_of

pytestmark = pytest.mark.slow  # captures many graphs

STEPS = 12  # of 54 images in batches of 16: three epochs, each with a short last batch


@pytest.fixture(autouse=True)
def pairs_of_steps(monkeypatch):
    """Replays of two steps, at 0, 4 and 8, and of one; the period of R1 is a multiple of two."""
    monkeypatch.setattr(CUDAGraph, "steps_a_replay", 2)


@pytest.fixture(params=sorted(cg.CGANConfig.recipes))
def config(request, tiny_config):
    """Each recipe at the tiny size; of the tuned one with every addition."""
    full = getattr(cg.CGANConfig, request.param)()
    if request.param == "tuned":
        full = full.replace(instance_noise=0.1)
    sizes = ("classes", "image_shape", "embedding_dim", "latent_dim", "hidden_dim", "batch_size")
    return full.replace(epochs=4, **{name: getattr(tiny_config, name) for name in sizes})


def scheduled(config):
    """A recipe's three functions; the original one is given a schedule for the test."""
    sample, step, set_schedule = recipe_of(config)
    if set_schedule is not None:
        return sample, step, set_schedule

    def scaled_step(state, *inputs):
        stats = step(state, *inputs) * state.schedule["scale"]
        return -stats if state.schedule["negative"] else stats

    def scale_and_rate(state, total_steps):
        state.schedule = {"scale": 1 / (1 + state.step), "negative": state.step % 3 == 0}
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - state.step / total_steps)

    return sample, scaled_step, scale_and_rate


def run(create_engine, config, data, steps=STEPS):
    """Train as `train` does and return the state, with the statistics of all steps."""
    sample, step, set_schedule = scheduled(config)
    set_schedule = functools.partial(set_schedule, total_steps=20)
    engine, state = create_engine(sample, step), cg.TrainingState.create(config)
    engine.set_schedule = set_schedule
    state.stats = torch.zeros(steps, 4)

    def run_next_step(state, data, batch):
        set_schedule(state)
        return engine(state, data, batch)

    while state.step < steps:
        batches = state.shuffled(len(data), state.step // 4).split(config.batch_size)
        cg.train_epoch(state, data, engine.grouped(state, batches), run_next_step)
    return state


def everything(state):
    networks = (state.generator, state.generator_ema, state.discriminator)
    optimizers = (state.generator_optimizer, state.discriminator_optimizer)
    return {
        "stats": state.stats,
        "networks": [n.state_dict() for n in networks if n is not None],
        "adam": [o.state_dict()["state"] for o in optimizers],
        "rng": state.rng.get_state(),
    }


def assert_equals_eager(create_engine, config, data):
    measured, expected = (run(each, config, data) for each in (create_engine, Eager))
    # The rate is a float64 of Python's in one and a float32 tensor in the other.
    torch.testing.assert_close(everything(measured), everything(expected), atol=1e-6, rtol=1e-5)


def test_a_replayed_step_equals_the_eager_one(config, tiny_data, cuda):
    assert_equals_eager(CUDAGraph, config, tiny_data)
    assert cuda.replays == 6  # the short batches run eagerly
    assert cuda.current_device.type == "cuda" and cuda.current is cuda.current_stream()


def test_a_step_compiled_before_the_capture_equals_the_eager_one(
    config, tiny_data, cuda, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda program: compiled.append(program) or program)
    measured, expected = (run(each, config, tiny_data) for each in (CompiledGraph, Eager))
    torch.testing.assert_close(everything(measured), everything(expected), atol=1e-5, rtol=1e-4)
    assert cuda.replays == 6 and len(compiled) == 2  # the two variants of each recipe
    operations = {str(node.target) for node in compiled[0].graph.nodes}
    assert not any("fused" in name or "profiler" in name for name in operations)


def test_steps_are_grouped_by_their_number(tiny_config):
    engine, state = CUDAGraph(None, None), cg.TrainingState.create(tiny_config)
    engine.steps_a_replay = 4

    def grouped(first, count):
        """The lengths of the groups, 0 for a single step; the last batch is a short one."""
        state.step, lengths = first, []
        for batch in engine.grouped(state, torch.arange(16 * count - 1).split(16)):
            lengths.append(len(batch) if batch.dim() == 2 else 0)
            assert lengths[-1] or len(batch) in (16, 15)
            state.step += max(lengths[-1], 1)
        assert state.step == first + count
        return lengths

    assert grouped(0, 10) == [4, 4, 0, 0]
    assert grouped(8, 5) == [4, 0]
    assert grouped(8, 4) == [0, 0, 0, 0]  # the fourth batch is short
    assert grouped(6, 9) == [0, 0, 4, 0, 0, 0]
    engine.failed = True
    assert grouped(0, 5) == [0] * 5


FAULTS = {
    "the rate is baked in": ("traced", "group.update(lr=rate, **options)", "group.update(options)"),
    "the schedule is baked in": ("traced", "{**state.schedule, **numbers}", "state.schedule"),
    "the numbers are not copied": ("cuda_graph", "schedule.copy_(numbers, ", "dict("),
    "the indices are not copied": ("cuda_graph", "batches.copy_(indices)", "pass"),
    "the warm-up trains": ("cuda_graph", "copy.deepcopy(views)", "views"),
    "the rng is not registered": ("cuda_graph", "graph.register_generator_state(views[0].rng)", ""),
    "each step has the first one's indices": (
        "cuda_graph",
        "data, batches[i])",
        "data, batches[0])",
    ),
    "each step has the first one's numbers": (
        "cuda_graph",
        "schedule[i], strict",
        "schedule[0], strict",
    ),
    "each step has the first one's variant": ("cuda_graph", "self.set_schedule(state)", "pass"),
    "a group's statistics are lost": (
        "cuda_graph",
        "state.stats[first : first + len(batch)] = stats",
        "pass",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_sees_each_fault(fault, config, tiny_data, cuda, monkeypatch):
    """Otherwise the test above would say nothing about a GPU."""
    faulty_module, old, new = FAULTS[fault]
    for name in ("traced", "cuda_graph"):
        full_name = f"cgan_utils.engines.{name}"
        source = inspect.getsource(importlib.import_module(full_name))
        if name == faulty_module:
            assert old in source
            source = source.replace(old, new)
        module = types.ModuleType(full_name)
        module.__package__ = "cgan_utils.engines"
        monkeypatch.setitem(sys.modules, full_name, module)
        exec(source, module.__dict__)
    module.CUDAGraph.steps_a_replay = CUDAGraph.steps_a_replay
    refused = fault == "the rng is not registered"  # as CUDA does
    error, reason = (RuntimeError, "not registered") if refused else (AssertionError, "not close")
    with pytest.raises(error, match=reason):
        assert_equals_eager(module.CUDAGraph, config, tiny_data)


def train(config, data, engine_class, monkeypatch, *options, **kwargs):
    def make_engine(name, device, steps, sample, step, set_schedule):
        engine = engine_class(sample, step, *options)
        engine.set_schedule = set_schedule
        return engine

    monkeypatch.setattr(training, "make_engine", make_engine)
    return cg.train(config, data, "cpu", "eager", progress=False, **kwargs)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resuming_gives_the_same_bits(stop, config, tiny_data, tmp_path, cuda, monkeypatch):
    whole = train(config, tiny_data, CUDAGraph, monkeypatch, max_steps=STEPS)
    assert whole.engine == "graph"
    part = train(config, tiny_data, CUDAGraph, monkeypatch, max_steps=stop)
    path = cg.save_checkpoint(tmp_path / "part.pt", part)
    resumed = train(config, tiny_data, CUDAGraph, monkeypatch, max_steps=STEPS, resume_from=path)
    torch.testing.assert_close(everything(resumed), everything(whole), atol=0, rtol=0)


def waiting_step(state, *inputs):
    stats = cg.training_step(state, *inputs)
    stats[0].item()
    return stats


def test_after_a_failed_capture_training_goes_on_eagerly(tiny_config, tiny_data, cuda, monkeypatch):
    stream, reason = cuda.current_stream(), "operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match=f"engine: 'graph' does not work here: {reason}"):
        train(tiny_config, tiny_data, CUDAGraph, monkeypatch, step=waiting_step)
    with pytest.warns(UserWarning, match=f"training runs eagerly, which is slower: {reason}"):
        state = train(tiny_config, tiny_data, CUDAGraph, monkeypatch, True, step=waiting_step)
    assert state.engine == "eager" and cuda.current_stream() is stream
    assert not any(state.rng is generator for generator in cuda.broken)
    expected = train(tiny_config, tiny_data, Eager, monkeypatch)
    torch.testing.assert_close(everything(state), everything(expected), atol=0, rtol=0)

"""An emulated CUDA graph computes what the eager step does; test_engines has those on a GPU."""

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
from cgan_utils.training import recipe_of

pytestmark = pytest.mark.slow  # captures many graphs

STEPS = 12  # of 54 images in batches of 16: three epochs, each with a short last batch


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
    engine, state = create_engine(sample, step), cg.TrainingState.create(config)
    state.stats = torch.zeros(steps, 4)

    def run_next_step(state, data, batch):
        set_schedule(state, 20)
        return engine(state, data, batch)

    while state.step < steps:
        order = state.shuffled(len(data), state.step // 4)
        cg.train_epoch(state, data, order.split(config.batch_size), run_next_step)
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
    assert cuda.replays == 9  # the short batches run eagerly
    assert cuda.current_device.type == "cuda" and cuda.current is cuda.current_stream()


FAULTS = {
    "the rate is baked in": ("traced", "group.update(lr=rate, **options)", "group.update(options)"),
    "the schedule is baked in": ("traced", "{**state.schedule, **numbers}", "state.schedule"),
    "the numbers are not filled in": ("cuda_graph", "numbers[name].fill_(value)", "pass"),
    "the batch is not copied": ("cuda_graph", "batch.copy_(indices)", "pass"),
    "the warm-up trains": ("cuda_graph", "copy.deepcopy(state)", "state"),
    "the rng is not registered": ("cuda_graph", "graph.register_generator_state(state.rng)", ""),
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
    refused = fault == "the rng is not registered"  # as CUDA does
    error, reason = (RuntimeError, "not registered") if refused else (AssertionError, "not close")
    with pytest.raises(error, match=reason):
        assert_equals_eager(module.CUDAGraph, config, tiny_data)


def train(config, data, engine, monkeypatch, *options, **kwargs):
    monkeypatch.setattr(
        training,
        "make_engine",
        lambda name, device, steps, sample, step: engine(sample, step, *options),
    )
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

"""Whatever runs the step, it computes the same; and the choice of what runs it."""

import copy
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

import cgan_utils as cg
from cgan_utils import engines
from cgan_utils._runtime import make_rng
from cgan_utils.checkpoints import latest_checkpoint
from cgan_utils.engines import codegen, compiled
from cgan_utils.engines.compiled import Compiled
from cgan_utils.engines.cuda_graph import CUDAGraph
from cgan_utils.engines.threads import Threads
from cgan_utils.engines.traced import rate_from
from cgan_utils.tuned import R1_INTERVAL

pytestmark = pytest.mark.slow  # most of them compile programs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=sorted(cg.CGANConfig.recipes))
def recipe(request, tiny_config):
    """Each recipe at the tiny size, of 54 images: three whole batches and a short one.

    Of the tuned one with instance noise, which its step treats as one more input.
    """
    sizes = ("classes", "image_shape", "embedding_dim", "latent_dim", "hidden_dim")
    full = getattr(cg.CGANConfig, request.param)()
    if request.param == "tuned":
        full = full.replace(instance_noise=0.1)
    return full.replace(
        batch_size=16, epochs=13, **{name: getattr(tiny_config, name) for name in sizes}
    )


def train(config, data, engine, device="cpu", **kwargs):
    return cg.train(config, data, device, engine, progress=False, **kwargs)


def tensors(state):
    networks = (state.generator, state.generator_ema, state.discriminator)
    return [t for n in networks if n is not None for t in n.state_dict().values()]


def assert_close(state, other, atol=2e-5):
    for a, b in zip(tensors(state), tensors(other), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), atol=atol, rtol=1e-3)


def plain_loop(config, data, steps, device="cpu"):
    """The algorithm as a textbook writes it, given the same images, noise and start.

    Its own losses, gradients for every network, unfused Adam, average and batches; nothing of
    `training`. Only the random draws are the package's.
    """
    state = cg.TrainingState.create(config, 0, device)
    matching_aware, r1_gamma, ema_decay, decays = (  # which only the tuned recipe has
        getattr(config, name, 0)
        for name in ("matching_aware_weight", "r1_gamma", "ema_decay", "learning_rate_decay")
    )
    g, d, average = state.generator, state.discriminator, state.generator_ema
    optimizers = [
        torch.optim.Adam(n.parameters(), config.learning_rate, config.betas, foreach=False)
        for n in (g, d)
    ]
    bce = nn.BCELoss()
    per_epoch = -(-len(data) // config.batch_size)
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            rng = make_rng(0, 2, epoch)
            batches = torch.randperm(len(data), generator=rng).split(config.batch_size)
        index = batches[position]
        real = (data.images[index] / 127.5 - 1).to(device)
        labels = data.labels[index].to(device)
        z = torch.randn(len(index), config.latent_dim, generator=state.rng, device=device)
        asked = torch.randint(3, (len(index),), generator=state.rng, device=device)
        noise = torch.zeros(2, *real.shape, device=device)
        if getattr(config, "instance_noise", 0):
            shape = len(index), 2, *config.image_shape
            noise = 0.1 * torch.randn(shape, generator=state.rng, device=device).transpose(0, 1)
        real = (real + noise[0]).detach().requires_grad_()
        left = 1 - step / (config.epochs * per_epoch) if decays else 1
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = config.learning_rate * left
        one, zero = torch.ones(len(index), device=device), torch.zeros(len(index), device=device)
        fake = g(z, asked) + noise[1]
        logits = d(real, labels)
        loss = bce(logits.sigmoid(), one) + bce(d(fake.detach(), asked).sigmoid(), zero)
        if matching_aware:
            shifted = [d(real, (labels + k) % config.num_classes) for k in (1, 2)]  # of 3 classes
            wrong = torch.cat(shifted).sigmoid()
            loss = loss + matching_aware * bce(wrong, torch.zeros_like(wrong))
        if r1_gamma and step % 8 == 0:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            gamma = r1_gamma * (left + (1 - left) / 10)
            loss = loss + 4 * gamma * (slope**2).sum() / len(index)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        bce(d(fake, asked).sigmoid(), one).backward()
        optimizers[0].step()
        kept = min(ema_decay, (1 + step) / (10 + step))
        for name, value in average.state_dict().items() if average is not None else ():
            if value.is_floating_point():
                value.copy_(kept * value + (1 - kept) * g.state_dict()[name])
    return state


# -- the same numbers


@pytest.mark.parametrize("device", DEVICES)
def test_eager_equals_the_plain_loop(recipe, tiny_data, device):
    expected = plain_loop(recipe, tiny_data, 50, device)
    assert_close(train(recipe, tiny_data, "eager", device, max_steps=50), expected)


def test_compiled_equals_the_plain_loop(recipe, tiny_data):
    state = train(recipe, tiny_data, "compiled", max_steps=50)
    assert state.engine == "compiled"
    assert_close(state, plain_loop(recipe, tiny_data, 50))
    eager = train(recipe, tiny_data, "eager", max_steps=50)
    assert torch.equal(state.rng.get_state(), eager.rng.get_state())  # the same draws
    for name in ("generator_optimizer", "discriminator_optimizer"):  # of one layout
        ours, theirs = (getattr(s, name).state_dict() for s in (state, eager))
        assert ours["param_groups"] == theirs["param_groups"]
        torch.testing.assert_close(ours["state"], theirs["state"], atol=1e-5, rtol=1e-2)
    torch.testing.assert_close(
        torch.tensor(list(state.history.values())), torch.tensor(list(eager.history.values()))
    )


@needs_cuda
@pytest.mark.parametrize("engine", ["graph", "compiled"])
def test_graph_equals_the_plain_loop(engine, recipe, tiny_data, monkeypatch):
    monkeypatch.setattr(CUDAGraph, "steps_a_replay", 2)
    expected = plain_loop(recipe, tiny_data, 50, "cuda")
    assert_close(train(recipe, tiny_data, engine, "cuda", max_steps=50), expected)


def test_one_program_for_each_kind_of_step(recipe, tiny_data, monkeypatch):
    recorded, record = [], Compiled.record

    def counting(self, state, data, batch):
        recorded.append(state.schedule.get("applies_r1", False))
        return record(self, state, data, batch)

    monkeypatch.setattr(Compiled, "record", counting)
    train(recipe, tiny_data, "compiled", max_steps=20)
    assert recorded == ([True, False] if getattr(recipe, "r1_gamma", 0) else [False])


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resuming_a_compiled_run_gives_the_same_bits(recipe, stop, tiny_data, tmp_path):
    whole, resumed = whole_and_resumed(recipe, tiny_data, "compiled", "cpu", stop, tmp_path)
    assert resumed.history == whole.history
    for a, b in zip(tensors(whole), tensors(resumed), strict=True):
        assert torch.equal(a, b)


@needs_cuda
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resuming_a_graph_run_gives_the_same_numbers(
    recipe, stop, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(CUDAGraph, "steps_a_replay", 2)
    whole, resumed = whole_and_resumed(recipe, tiny_data, "graph", "cuda", stop, tmp_path)
    assert whole.engine == resumed.engine == "graph"
    assert_close(resumed, whole)


def whole_and_resumed(config, data, engine, device, stop, folder):
    whole = train(config, data, engine, device, max_steps=14)
    part = train(config, data, engine, device, max_steps=stop)
    path = cg.save_checkpoint(folder / "part.pt", part)
    return whole, train(config, data, engine, device, max_steps=14, resume_from=path)


@pytest.mark.parametrize("name", cg.CGANConfig.recipes)
def test_a_compiled_run_has_the_same_bits_with_any_number_of_threads(name, monkeypatch):
    config = getattr(cg.CGANConfig, name)()
    images = torch.randint(256, (300, 1, 28, 28), dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(300) % 10, config.classes)
    used, states = [], []

    def taking_turns(numbers):
        turns = itertools.cycle(numbers)

        def call(function):
            used.append(next(turns))
            return function(threads=used[-1])

        return lambda: call

    for numbers in ([1], [3], [2, 1]):
        monkeypatch.setattr(compiled, "Threads", taking_turns(numbers))
        states.append(train(config, data, "compiled", max_steps=9))
    assert states[0].engine == "compiled" and set(used) == {1, 2, 3}
    for state in states[1:]:
        assert torch.equal(state.stats, states[0].stats)
        assert all(map(torch.equal, tensors(state), tensors(states[0])))


def test_a_compiled_run_takes_turns_and_leaves_torchs_threads_alone(
    tiny_config, tiny_data, monkeypatch
):
    """Batches are sampled by one thread; the step has the number of threads that it is given."""
    asked, sampling, before = [], [], torch.get_num_threads()

    class Program:
        def __call__(self, *tensors, threads):
            asked.append(threads)
            return torch.zeros(4)

    def sample(*arguments):
        sampling.append(torch.get_num_threads())
        return cg.sample_batch(*arguments)

    ticks = itertools.count()  # each call takes 0.02 seconds by this clock
    choice = Threads(clock=lambda: 0.02 * next(ticks))
    monkeypatch.setattr(compiled, "Threads", lambda: choice)
    monkeypatch.setattr(compiled, "compile_program", lambda program: Program())
    engine = Compiled(sample, cg.training_step)
    state = cg.TrainingState.create(tiny_config)
    try:
        torch.set_num_threads(2)
        for _ in range(200):
            engine(state, tiny_data, torch.arange(16))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(asked) == {1, 2} and set(sampling[1:]) == {1}


# -- the choice


def chosen(name, device, steps):
    return type(engines.make_engine(name, torch.device(device), steps, None, None)).__name__


def test_auto_picks_by_device_and_length():
    assert chosen("auto", "cpu", 100) == "Eager"
    assert chosen("auto", "cpu", engines.COMPILING_PAYS) == "Compiled"
    assert chosen("auto", "cuda", 100) == "Eager"
    assert chosen("auto", "cuda", engines.CAPTURING_PAYS) == "CUDAGraph"
    assert chosen("auto", "mps", 10**6) == "Eager"
    assert chosen("eager", "cpu", 10**6) == "Eager"
    assert chosen("compiled", "cpu", 1) == "Compiled"
    assert chosen("compiled", "cuda", 1) == "CompiledGraph"


def test_engines_that_the_device_has_not_are_refused(tiny_config, tiny_data):
    with pytest.raises(ValueError, match=r"engine: 'graph' .* cpu"):
        train(tiny_config, tiny_data, "graph")
    with pytest.raises(ValueError, match=r"engine: 'compiled' .* mps"):
        chosen("compiled", "mps", 1)


def test_a_replay_has_whole_periods_of_the_schedule():
    assert CUDAGraph.steps_a_replay % R1_INTERVAL == 0


def test_without_a_c_compiler_auto_says_so_once_and_goes_on(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    codegen.build.cache_clear()
    with pytest.raises(RuntimeError, match=r"'compiled' does not work here: .* 'no-such-compiler'"):
        train(tiny_config, tiny_data, "compiled")
    monkeypatch.setattr(engines, "COMPILING_PAYS", 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state = train(tiny_config, tiny_data, "auto")
    assert state.engine == "eager"
    assert ["slower" in str(w.message) for w in said] == [True]
    for a, b in zip(tensors(state), tensors(train(tiny_config, tiny_data, "eager")), strict=True):
        assert torch.equal(a, b)


def test_a_step_of_ones_own_is_recorded_only_on_request(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(engines, "COMPILING_PAYS", 1)
    taken = []

    def counting_step(*arguments):
        taken.append(1)
        return cg.training_step(*arguments)

    train(tiny_config, tiny_data, "auto", step=counting_step)
    assert len(taken) == 8  # each of two epochs of three whole batches and a short one
    train(tiny_config, tiny_data, "compiled", step=counting_step)
    assert len(taken) == 8 + 1 + 2  # traced once; the short batches run eagerly


# -- recording


def test_an_optimizer_is_itself_again_after_recording():
    weight = nn.Parameter(torch.ones(1))
    adam = torch.optim.Adam([weight], 0.5, fused=True)
    before = copy.deepcopy(adam.state_dict()["param_groups"])
    with pytest.raises(ZeroDivisionError), rate_from(adam, torch.tensor(2.0), foreach=True):
        assert adam.param_groups[0]["lr"] == 2 and adam.param_groups[0]["foreach"]
        weight.grad = torch.ones(1)
        raise ZeroDivisionError
    assert adam.state_dict()["param_groups"] == before and weight.grad is None


# -- several processes

process = pytest.mark.process


def launch(folder, *flags, processes=2):
    """Start `torchrun ... -m cgan_utils train`; its output goes to a file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "cgan_utils", "train", "--device", "cpu"]
    command += ["--hidden-dim", "16", "--output", folder / "run.pt", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


# without batch norm, which sees its share only
TUNED_PARTS = ["--recipe", "tuned", "--no-conditional-batch-norm", "--no-patch-decoder"]
TUNED_PARTS += ["--hidden-layers", "2", "--learning-rate", "2e-4"]


@process
@pytest.mark.parametrize("flags", [[], TUNED_PARTS], ids=["original", "tuned"])
def test_two_processes_equal_one_with_the_whole_batch(flags, tmp_path):
    run = launch(tmp_path, "--batch-size", "16", "--max-steps", "20", *flags)
    changes = {"hidden_dim": 16, "batch_size": 32}
    config = cg.CGANConfig.original().replace(**changes)
    if flags:
        changes |= {"conditional_batch_norm": False, "patch_decoder": False}
        changes |= {"hidden_layers": 2, "learning_rate": 2e-4}
        config = cg.CGANConfig.tuned().replace(**changes)
    expected = train(config, cg.load_fashion_mnist("train"), "eager", max_steps=20)
    assert run.wait(600) == 0, (tmp_path / "output.txt").read_text()
    state = cg.load_checkpoint(tmp_path / "run.pt")
    assert (state.config, state.step, state.engine) == (
        config.replace(batch_size=16),
        20,
        "distributed",
    )
    assert_close(state, expected)
    torch.testing.assert_close(state.stats[:20], expected.stats[:20], atol=1e-5, rtol=1e-4)
    assert (tmp_path / "output.txt").read_text().count("checkpoint:") == 1  # one of them wrote


@process
def test_killing_one_process_ends_all_and_leaves_a_checkpoint(tmp_path):
    run = launch(tmp_path, "--batch-size", "1000", "--epochs", "1000")
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("run/step-*.pt")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.1)
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True
    )
    workers = [int(pid) for pid in listed.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert run.wait(300) != 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    output = (tmp_path / "output.txt").read_text()
    assert "another process of this run" in output and "step-0000" in output
    assert cg.load_checkpoint(latest_checkpoint(tmp_path / "run")).step >= 30


def test_a_run_of_other_shares_is_not_resumed(tiny_config, tiny_data, tmp_path, monkeypatch):
    path = cg.save_checkpoint(tmp_path / "x.pt", train(tiny_config, tiny_data, "eager"))
    monkeypatch.setattr("cgan_utils.training.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"resume_from: .* images or processes: 8 .* has 2 steps"):
        train(tiny_config.replace(epochs=3), tiny_data, "eager", resume_from=path)

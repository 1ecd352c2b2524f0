"""Ways to run the one training step: as it stands, compiled, as a CUDA graph, on many processes.

An engine is made from two functions of `training`, `draw_batch` and `training_step`, and called
with a state, the data and the indices of one batch; it updates the state and returns the measures.
It computes what the two functions say, to the last digits of a float; it only runs it otherwise.
"""

import contextlib
import copy
import dataclasses
import types
import warnings

import torch
from torch import distributed
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel

from .compiler import compile_program

ENGINES = ("auto", "eager", "compiled", "graph")

# The length of a run, in steps, from which a program surely saves more time than making it costs:
# on the CPU of results/speed.json under a second, to save 1.8 ms of each step; on a busier day 18
# seconds for the tuned recipe's two programs, to save 19 ms; under a second for a capture.
COMPILING_PAYS = 1000
CAPTURING_PAYS = 200


def make_engine(name, device, steps, draw, step):
    """The engine of this name; "auto" picks by device and by the steps of the whole run.

    By the whole run, not by what is left of it, so that a resumed one is run in the same way.
    """
    forgiving = name == "auto"
    if distributed.is_initialized():
        if name not in ("auto", "eager"):
            raise ValueError(f"engine must be 'auto' or 'eager' on several processes; got {name!r}")
        return Distributed(draw, step)
    if name == "graph" and device.type != "cuda":
        raise ValueError(f"engine: 'graph' needs a CUDA device; this run is on {device}")
    if name == "compiled" and device.type != "cpu":
        raise ValueError(f"engine: 'compiled' is for the CPU; this run is on {device}")
    if name == "auto" and device.type == "cuda" and steps >= CAPTURING_PAYS:
        name = "graph"
    if name == "auto" and device.type == "cpu" and steps >= COMPILING_PAYS:
        name = "compiled"
    if name == "compiled":
        return Compiled(draw, step, forgiving)
    if name == "graph":
        return Graph(draw, step, forgiving)
    return Eager(draw, step)


class Eager:
    """The step as it stands, one operation after the other."""

    def __init__(self, draw, step):
        self.draw, self.step = draw, step

    def __call__(self, state, data, batch):
        return self.step(state, *self.draw(state, data, batch))


class Recorded(Eager):
    """The step recorded once as a program, then replayed: one for each kind of step.

    The kinds are with and without gradient penalty. What changes from step to step, the learning
    rate and the average's weight, is given to the program as tensors. A short last batch, of
    another shape, runs as it stands. If recording fails, a forgiving engine goes on without.
    """

    def __init__(self, draw, step, forgiving=False):
        super().__init__(draw, step)
        self.forgiving, self.failed, self.programs = forgiving, False, {}

    def __call__(self, state, data, batch):
        kind = state.penalized
        if kind not in self.programs and len(batch) == state.config.batch_size and not self.failed:
            try:
                start_adam(state)
                self.programs[kind] = self.record(state, data, batch)
            except Exception as error:
                self.failed = True
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                if not self.forgiving:
                    name = type(self).__name__.lower()
                    raise RuntimeError(f"engine: {name!r} does not work here: {reason}") from error
                warnings.warn(f"training runs step by step, slower: {reason}", stacklevel=2)
        if self.failed or len(batch) < state.config.batch_size:
            return super().__call__(state, data, batch)
        return self.programs[kind](state, data, batch)


class Compiled(Recorded):
    """The whole step, both updates included, as one compiled program.

    torch.fx writes down which operations the step starts, backward passes included; `compiler`
    writes them as C. What is left is one function without modules, autograd or checks.
    """

    def record(self, state, data, batch):
        model = copy.deepcopy(state)  # tracing runs the step once, for real
        rate, weight = schedule = [torch.tensor(value) for value in schedule_of(state)]
        inputs = self.draw(model, data, batch)
        with (
            rate_from(model.generator_optimizer, rate),
            rate_from(model.discriminator_optimizer, rate),
        ):
            traced = stand_in(model, average_weight=weight)
            program = make_fx(lambda *_: self.step(traced, *inputs))(
                *tensors_of(model), *schedule, *inputs
            )
        compiled = compile_program(program)
        tensors = tensors_of(state)

        def run(state, data, batch):
            schedule = [torch.tensor(value) for value in schedule_of(state)]
            return compiled(*tensors, *schedule, *self.draw(state, data, batch))

        return run


class Graph(Recorded):
    """The step with its draws as a CUDA graph: hundreds of kernels for one call from Python."""

    def record(self, state, data, batch):
        device = state.device
        batch = batch.clone()  # the graph reads its indices and its schedule from these
        rate, weight = (torch.tensor(value, device=device) for value in schedule_of(state))
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # libraries set themselves up; none of it may be captured
            for _ in range(3):
                super(Recorded, self).__call__(copy.deepcopy(state), data, batch)
        torch.cuda.current_stream(device).wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(state.noise)
        with (
            rate_from(state.generator_optimizer, rate, capturable=True),
            rate_from(state.discriminator_optimizer, rate, capturable=True),
            torch.cuda.graph(graph, stream=stream),
        ):
            captured = stand_in(state, average_weight=weight)
            measures = self.step(captured, *self.draw(captured, data, batch))

        def run(state, data, indices):
            batch.copy_(indices)
            for tensor, value in zip((rate, weight), schedule_of(state), strict=True):
                tensor.fill_(value)
            graph.replay()
            return measures

        return run


class Distributed(Eager):
    """The step on several processes, each on its own share of the batch.

    All draw the same noise for the whole batch, so that no share repeats another's and any number
    of processes computes the same. DistributedDataParallel averages the gradients. Batch norm, if
    any, sees its share only.
    """

    def __init__(self, draw, step):
        super().__init__(draw, step)
        self.parallel = None

    def __call__(self, state, data, batch):
        if self.parallel is None:
            self.parallel = {
                name: DistributedDataParallel(getattr(state, name))
                for name in ("live_generator", "discriminator")
            }
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        whole = self.draw(state, data, batch)
        share = [tensor.chunk(processes)[rank] for tensor in whole]
        measures = self.step(stand_in(state, **self.parallel), *share)
        distributed.all_reduce(measures)
        return measures / processes


def processes():
    """How many processes share the training: 1, unless torchrun started this one."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def stand_in(state, **changes):
    """What the step reads of a state, at this step, with some parts exchanged."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    at_this_step = {name: getattr(state, name) for name in ("device", *SCHEDULED)}
    return types.SimpleNamespace(**(parts | at_this_step | changes))


SCHEDULED = ("penalized", "average_weight")


def schedule_of(state):
    """The two numbers that change from step to step: the learning rate, the average's weight."""
    (group,) = state.generator_optimizer.param_groups
    return float(group["lr"]), float(state.average_weight)


def tensors_of(state):
    """Every tensor that a step updates, each once."""
    networks = {id(n): n for n in (state.generator, state.live_generator, state.discriminator)}
    optimizers = state.generator_optimizer, state.discriminator_optimizer
    tensors = [t for n in networks.values() for t in (*n.parameters(), *n.buffers())]
    tensors += [t for o in optimizers for moments in o.state.values() for t in moments.values()]
    return tensors


def start_adam(state):
    """Give Adam the zeros that it otherwise makes in its first step: a program needs them."""
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p not in optimizer.state:
                    optimizer.state[p] = {
                        "step": torch.zeros((), device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }


@contextlib.contextmanager
def rate_from(optimizer, rate, **options):
    """For a while, an optimizer with these options that reads its learning rate from a tensor."""
    (group,) = optimizer.param_groups
    before = dict(group)
    try:
        group.update(lr=rate, **options)
        yield
    finally:
        group.update(before)
        optimizer.zero_grad()  # its gradients lie in the graph's own memory

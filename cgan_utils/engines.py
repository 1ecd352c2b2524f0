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

aten = torch.ops.aten

ENGINES = ("auto", "eager", "compiled", "graph")

# The length of a run, in steps, from which a program saves more time than making it costs: on the
# CPU of results/speed.json a third of a second, to save 0.9 ms of each step; under a second for a
# capture.
COMPILING_PAYS = 500
CAPTURING_PAYS = 200

# From how many multiplications on a product of matrices goes to oneDNN.
WORTH_STARTING = 1_500_000

ACTIVATIONS = {  # and what oneDNN calls them
    aten.relu.default: "relu",
    aten.leaky_relu.default: "leaky_relu",
    aten.tanh.default: "tanh",
}


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
    """The whole step, both updates included, as one program: a flat list of library calls.

    torch.fx writes down which operations the step starts, backward passes included; the list is
    simplified and becomes a function that starts these and does nothing else: no modules, no
    autograd, no checks.
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
        simplify(program)
        tensors = tensors_of(state)

        @torch.inference_mode()
        def run(state, data, batch):
            schedule = [torch.tensor(value) for value in schedule_of(state)]
            return program(*tensors, *schedule, *self.draw(state, data, batch))

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


def simplify(program):
    """Have a recorded step, a torch.fx.GraphModule, do the same with less work. In place."""
    graph = program.graph
    skip_what_computes_nothing(graph)
    graph.eliminate_dead_code()
    products = [
        node for node in graph.nodes if node.target in (aten.mm.default, aten.addmm.default)
    ]
    for node in graph.nodes:
        if node.target is aten.slice.Tensor and node.args[0] in products:
            skip_unread_columns(graph, node)
    if onednn_is_faster():
        for product in products:
            multiply_with_onednn(graph, product)
    skip_what_computes_nothing(graph)  # some matrices are turned over twice now
    graph.eliminate_dead_code()
    program.recompile()


def skip_what_computes_nothing(graph):
    """Other names for the same tensor, and the marks that Adam makes for the profiler."""
    for node in reversed(graph.nodes):
        if str(node.target).startswith("profiler."):
            graph.erase_node(node)
    for node in graph.nodes:
        if node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
        if node.target is aten.t.default and node.args[0].target is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])


def skip_unread_columns(graph, part):
    """Where less than half of a product is read, compute that: D's gradient by a label."""
    product, dim, *bounds = part.args
    *bias, a, b = product.args
    read, computed = (node.meta["val"].numel() for node in (part, product))
    if dim == 1 and not bias and len(product.users) == 1 and 2 * read < computed:
        with graph.inserting_before(part):
            columns = graph.call_function(aten.slice.Tensor, (b, 1, *bounds))
            part.replace_all_uses_with(graph.call_function(aten.mm.default, (a, columns)))


def onednn_is_faster():
    """Than MKL, which PyTorch asks and which does not use AVX-512 on every make of CPU.

    The products of the original recipe's step (tests/benchmarks/speed.py) on two AMD processors:
    0.75 against 1.1 ms with AVX-512, 2.4 against 2.0 ms without.
    """
    wide_vectors = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide_vectors and torch.backends.mkldnn.is_available()


def multiply_with_onednn(graph, product):
    """Have oneDNN compute a product of matrices, and an activation that follows it.

    Only where the second factor, or its transpose, lies in memory without gaps: others are slow.
    It has no float64, and needs 10 microseconds to start, in which MKL is done with small ones.
    """
    *bias, a, b = product.args
    rows, matrix = len(a.meta["val"]), b.meta["val"]
    without_gaps = matrix.is_contiguous() or matrix.t().is_contiguous()
    large = rows * matrix.numel() >= WORTH_STARTING
    if without_gaps and large and matrix.dtype == torch.float32:
        activation = activation_of(product)
        name, parameters = "none", []
        if activation is not None:
            name, parameters = ACTIVATIONS[activation.target], activation.args[1:]
            activation.replace_all_uses_with(product)
        with graph.inserting_before(product):
            weight = graph.call_function(aten.t.default, (b,))
            arguments = a, weight, *(bias or [None]), name, parameters, ""
            onednn = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
        onednn.meta = product.meta
        product.replace_all_uses_with(onednn)


def activation_of(product):
    """What a product goes through, to be computed with it; None if its own value is needed.

    The way back through a leaky ReLU needs only the sign, which its result has too.
    """
    activations = [user for user in product.users if user.target in ACTIVATIONS]
    for user in product.users:
        needs_the_sign = user.target is aten.leaky_relu_backward.default and user.args[2] >= 0
        if user not in activations and (not needs_the_sign or user.args[0] is product):
            return None
    return activations[0] if len(activations) == 1 else None

"""CUDA graphs without a GPU: a list of recorded operations, replayed into the same memory.

What CUDA does and a plain call does not: while it captures, nothing is computed; a replay reads and
writes the memory of the capture, whatever became of the tensors' names; a number that Python held
then is part of the graph, as is the random state of a generator that was not registered; and a
capture that breaks leaves its stream current and its generator useless.
"""

import contextlib
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PATCHED = (
    "CUDAGraph",
    "Event",
    "Stream",
    "current_stream",
    "device",
    "graph",
    "set_stream",
    "stream",
)


class EmulatedCUDA:
    """The parts of `torch.cuda` that capture a graph, for tensors on the CPU."""

    def __init__(self):
        self.current, self.current_device = Stream(), torch.device("cuda:0")
        self.Stream, self.graphs, self.broken, self.milliseconds = Stream, [], [], []
        self.replays = 0

    def current_stream(self):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def device(self, device):
        before, self.current_device = self.current_device, device
        yield
        self.current_device = before

    def CUDAGraph(self):
        self.graphs.append(Graph(self))
        return self.graphs[-1]

    def Event(self, enable_timing):
        return Event(self)

    @contextlib.contextmanager
    def graph(self, graph, stream):
        before, self.current = self.current, stream
        assert self.current_device.type == "cpu", "another device is current"
        try:
            with Capture(graph):
                yield
        except Exception:
            graph.end_capture()
            self.broken += graph.generators
            raise RuntimeError("operation failed due to a previous error during capture") from None
        graph.end_capture()
        self.current = before


class Stream:
    def wait_stream(self, stream):
        pass


class Event:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        self.cuda.milliseconds.append((end.seconds - self.seconds) * 1e3)
        return self.cuda.milliseconds[-1]


class Graph:
    """The recorded operations; `before` holds what memory of others held before the capture."""

    def __init__(self, cuda):
        self.cuda, self.calls, self.generators = cuda, [], []
        self.before, self.made = {}, set()

    def register_generator_state(self, generator):
        self.generators.append(generator)
        self.noise = generator.get_state()

    def end_capture(self):
        for storage, content in self.before.values():
            storage.copy_(content)
        for generator in self.generators:
            generator.set_state(self.noise)
        with torch.no_grad():
            for *_, results in self.calls:
                for result in tensors(results):
                    if memory(result) in self.made and result.is_floating_point():
                        result.fill_(float("nan"))

    def replay(self):
        assert self.cuda.current_device.type == "cpu", "another device is current"
        self.cuda.replays += 1
        with torch.no_grad():
            for operation, arguments, options, results in self.calls:
                again = operation(*arguments, **options)
                for result, new in zip(tensors(results), tensors(again), strict=True):
                    if memory(result) != memory(new):
                        result.copy_(new)


class Capture(TorchDispatchMode):
    """Record each operation; it runs too, and `end_capture` takes back what it changed."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        graph, options = self.graph, options or {}
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if torch.Tag.nondeterministic_seeded in operation.tags:
            state = options["generator"].get_state()  # torch wraps generators anew for each call
            if not any(torch.equal(state, known.get_state()) for known in graph.generators):
                raise RuntimeError("the generator is not registered with the graph")
        for tensor in tensors((arguments, options)):
            if memory(tensor) not in graph.before.keys() | graph.made:
                storage = tensor.untyped_storage()
                graph.before[memory(tensor)] = storage, storage.clone()
        results = operation(*arguments, **options)
        graph.made |= {memory(result) for result in tensors(results)} - graph.before.keys()
        graph.calls.append((operation, arguments, options, results))
        return results


def tensors(nested):
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()

"""The step as a CUDA graph."""

import copy

import torch

from .eager import Eager
from .traced import Traced, reading_schedule, scheduled_numbers


class CUDAGraph(Traced):
    """Run the step with its sampling as a CUDA graph: one call from Python for all its kernels."""

    kind = "graph"

    def record(self, state, data, batch):
        device = state.device
        batch = batch.clone()  # the graph reads its indices and its schedule from these tensors
        numbers = {
            name: torch.tensor(float(v), device=device)
            for name, v in scheduled_numbers(state).items()
        }
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # libraries set themselves up; none of it may be captured
            for _ in range(3):
                Eager.__call__(self, copy.deepcopy(state), data, batch)
        torch.cuda.current_stream(device).wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(state.rng)
        with (
            reading_schedule(state, numbers, capturable=True) as view,
            torch.cuda.graph(graph, stream=stream),
        ):
            stats = Eager.__call__(self, view, data, batch)

        def run(state, data, indices):
            batch.copy_(indices)
            for tensor, value in zip(
                numbers.values(), scheduled_numbers(state).values(), strict=True
            ):
                tensor.fill_(value)
            graph.replay()
            return stats

        return run

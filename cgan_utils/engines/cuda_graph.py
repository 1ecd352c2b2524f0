"""The step as a CUDA graph."""

import contextlib
import copy

import torch

from .eager import Eager
from .traced import Traced, reading_schedule, scheduled_numbers


class CUDAGraph(Traced):
    """Run the step with its sampling as a CUDA graph: one call from Python for all its kernels."""

    kind = "graph"

    def record(self, state, data, batch):
        device, noise = state.device, state.rng.get_state()
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            try:
                graph, stats, batch, numbers = self.capture(state, data, batch.clone())
            except Exception:  # a broken capture keeps the stream and the rng to itself
                torch.cuda.set_stream(stream)
                state.rng = torch.Generator(device)
                state.rng.set_state(noise)
                raise

        def run(state, data, indices):
            with torch.cuda.device(device):
                batch.copy_(indices)
                for name, value in scheduled_numbers(state).items():
                    numbers[name].fill_(value)
                graph.replay()
            return stats

        return run

    def capture(self, state, data, batch):
        """Return the graph of a step, its statistics, and what it reads: indices and schedule."""
        numbers = {
            name: torch.tensor(float(value), device=state.device)
            for name, value in scheduled_numbers(state).items()
        }
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with (  # libraries set themselves up; none of it may be captured
            torch.cuda.stream(stream),
            reading_schedule(copy.deepcopy(state), numbers) as view,
        ):
            for _ in range(3):
                Eager.__call__(self, view, data, batch)
        torch.cuda.current_stream().wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(state.rng)
        with (
            reading_schedule(state, numbers, capturable=True) as view,
            capturing(graph, stream),
        ):
            stats = Eager.__call__(self, view, data, batch)
        return graph, stats, batch, numbers


@contextlib.contextmanager
def capturing(graph, stream):
    """Capture what is started within; an error there is raised, not that the capture is broken."""
    reason = None
    try:
        with torch.cuda.graph(graph, stream=stream):
            try:
                yield
            except Exception as error:
                reason = error
                raise
    except Exception as error:
        raise (reason or error) from None

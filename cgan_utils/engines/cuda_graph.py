"""The steps as a CUDA graph."""

import contextlib
import copy

import torch

from .eager import Eager
from .traced import Traced, reading_schedule, scheduled_numbers, state_view, variant_of


class CUDAGraph(Traced):
    """Run steps with their sampling as a CUDA graph: one call from Python for all their kernels.

    A graph holds one step, or the several that `grouped` puts together. It reads their indices and
    scheduled numbers on the device and leaves their statistics there. set_schedule: called with
    the state before each step of a group; None if the recipe has no schedule.
    """

    kind = "graph"
    steps_a_replay = 16  # a multiple of the schedule's period, so that all groups are one variant

    def __init__(self, sample, step, forgiving=False, set_schedule=None):
        super().__init__(sample, step, forgiving)
        self.captured_step, self.set_schedule = step, set_schedule

    def grouped(self, state, batches):
        """Yield indices (N,) or, for several steps at once, (steps_a_replay, N).

        Groups begin at multiples of their length, also in a resumed run and a later epoch.
        """
        batches, most = list(batches), self.steps_a_replay
        while batches:
            group = batches[:most]
            whole = len(group) == most and len(group[-1]) == state.config.batch_size
            if whole and state.step % most == 0 and not self.failed:
                yield torch.stack(group)
            else:
                del group[1:]
                yield group[0]
            del batches[: len(group)]

    def __call__(self, state, data, batch):
        if batch.shape[-1] < state.config.batch_size:
            return Eager.__call__(self, state, data, batch)
        if batch.dim() == 1:
            return self.several_steps(state, data, batch[None])[0]
        first = state.step % len(state.stats)
        stats = self.several_steps(state, data, batch)
        state.stats[first : first + len(batch)] = stats
        return stats[-1]

    def several_steps(self, state, data, batches):
        """Make a step on each batch, int64 (K, N); return their statistics, float (K, 4).

        Leaves the state at the last of these steps, which the caller counts.
        """
        first, views, numbers = state.step, [], []
        for _ in self.following(state, len(batches)):
            views.append(state_view(state))
            numbers.append(list(scheduled_numbers(state).values()))
        variant = tuple(map(variant_of, views))
        program = self.program(variant, state, data, batches, views)
        if program is not None:
            return program(batches, numbers)

        state.step = first
        pairs = zip(batches, self.following(state, len(batches)), strict=True)
        return torch.stack([Eager.__call__(self, state, data, batch) for batch, _ in pairs])

    def following(self, state, count):
        """Give the state the step and the schedule of each of its next `count` steps in turn."""
        for step in range(state.step, state.step + count):
            state.step = step
            if self.set_schedule is not None:
                self.set_schedule(state)
            yield

    def record(self, state, data, batches, views):
        device, noise, batches = state.device, state.rng.get_state(), batches.clone()
        schedule = torch.zeros(len(batches), len(scheduled_numbers(state)), device=device)
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            try:
                graph, stats = self.capture(data, batches, schedule, views)
            except Exception:  # a broken capture keeps the stream and the rng to itself
                torch.cuda.set_stream(stream)
                state.rng = torch.Generator(device)
                state.rng.set_state(noise)
                raise

        def run(indices, numbers):
            numbers = torch.tensor(numbers, pin_memory=device.type == "cuda")
            with torch.cuda.device(device):
                batches.copy_(indices)
                schedule.copy_(numbers, non_blocking=True)  # waiting would hold up the queue
                graph.replay()
            return stats

        return run

    def capture(self, data, batches, schedule, views):
        """Return the graph of a step on each batch, and the tensor of their statistics (K, 4)."""

        def run(views, **adam_options):
            stats = []
            for i, view in enumerate(views):
                numbers = dict(zip(scheduled_numbers(view), schedule[i], strict=True))
                with reading_schedule(view, numbers, **adam_options) as view:
                    inputs = self.sample(view, data, batches[i])
                    stats.append(self.captured_step(view, *inputs))
            return torch.stack(stats)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up; none of it may be captured
            for _ in range(3):
                run(copy.deepcopy(views))
        torch.cuda.current_stream().wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(views[0].rng)
        with capturing(graph, stream):
            stats = run(views, capturable=True)
        return graph, stats


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

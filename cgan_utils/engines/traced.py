"""What the engines that record the step once, and replay it, have in common."""

import contextlib
import dataclasses
import warnings

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from .eager import Eager


class Traced(Eager):
    """Record the step once as a program, then replay it; subclasses say how, in `record`.

    The truth values in state.schedule choose between programs, one for each variant of the step;
    its numbers, and the learning rate, are given to the program as tensors. A short last batch has
    another shape and runs eagerly. If recording fails, a forgiving engine goes on without it.
    """

    def __init__(self, sample, step, forgiving=False):
        super().__init__(sample, step)
        self.forgiving, self.failed, self.programs = forgiving, False, {}

    @property
    def name(self):
        return "eager" if self.failed else self.kind

    def __call__(self, state, data, batch):
        program = None
        if len(batch) == state.config.batch_size:
            program = self.program(variant_of(state), state, data, batch)
        if program is None:
            return super().__call__(state, data, batch)
        return program(state, data, batch)

    def program(self, variant, state, *arguments):
        """Return the program of this variant, recorded if it is new; None if recording fails."""
        if variant not in self.programs and not self.failed:
            try:
                initialize_adam(state)
                self.programs[variant] = self.record(state, *arguments)
            except Exception as error:
                self.failed = True
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                if not self.forgiving:
                    raise RuntimeError(
                        f"engine: {self.kind!r} does not work here: {reason}"
                    ) from error
                warnings.warn(f"training runs eagerly, which is slower: {reason}", stacklevel=3)
        return None if self.failed else self.programs[variant]

    def record(self, state, data, batch):
        """Return a function that is called like the engine and replays this step."""
        raise NotImplementedError


def state_view(state, **changes):
    """Return a state that shares everything with this one but a few exchanged parts."""
    return dataclasses.replace(state, **changes)


def variant_of(state):
    """The truth values of the schedule: of each combination, a step is a program of its own."""
    return tuple(value for value in state.schedule.values() if isinstance(value, bool))


def scheduled_numbers(state):
    """The numbers that change from step to step: the learning rate, then the schedule's."""
    (group,) = state.generator_optimizer.param_groups
    numbers = {name: v for name, v in state.schedule.items() if not isinstance(v, bool)}
    return {"learning_rate": group["lr"], **numbers}


@contextlib.contextmanager
def reading_schedule(state, numbers, **adam_options):
    """Yield a view of `state` whose step reads these tensors in place of the scheduled numbers."""
    rate, *_ = numbers.values()
    view = state_view(state, schedule={**state.schedule, **numbers})
    with (
        rate_from(state.generator_optimizer, rate, **adam_options),
        rate_from(state.discriminator_optimizer, rate, **adam_options),
    ):
        yield view


@contextlib.contextmanager
def rate_from(optimizer, rate, **options):
    """Have an optimiser read its learning rate from a tensor for a while, with these options."""
    (group,) = optimizer.param_groups
    before = dict(group)
    try:
        group.update(lr=rate, **options)
        yield
    finally:
        group.update(before)
        optimizer.zero_grad()  # its gradients lie in the recording's own memory


def initialize_adam(state):
    """Give Adam the zeros that it otherwise creates in its first step: a program needs them."""
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p not in optimizer.state:
                    optimizer.state[p] = {
                        "step": torch.zeros((), device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }


def trace(step, state, inputs):
    """Return a step's operations as a program of the state's tensors, its numbers and the inputs.

    Tracing runs the step once, for real.
    """
    tensors = [*tensors_of(state), *scheduled_numbers(state).values(), *inputs]
    return make_fx(lambda *_: step(state, *inputs))(*tensors)


def tensors_of(state):
    """Every tensor that a step updates."""
    networks = state.generator_ema, state.generator, state.discriminator
    optimizers = state.generator_optimizer, state.discriminator_optimizer
    tensors = [t for n in networks if n is not None for t in (*n.parameters(), *n.buffers())]
    tensors += [t for o in optimizers for moments in o.state.values() for t in moments.values()]
    return tensors

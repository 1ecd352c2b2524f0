"""The step as one C program, on the CPU."""

import copy
import functools

import torch

from .codegen import compile_program
from .threads import Threads, one_thread
from .traced import Traced, reading_schedule, scheduled_numbers, tensors_of, trace


class Compiled(Traced):
    """Run the whole step, both updates included, as one compiled program.

    torch.fx traces which operations the step starts, backward passes included; `codegen` writes
    them as C. What is left is one function without modules, autograd or checks. It computes the
    same bits with any number of threads, so that each program uses one or all, as is faster.
    """

    kind = "compiled"

    def record(self, state, data, batch):
        model = copy.deepcopy(state)  # tracing runs the step once, for real
        numbers = {name: torch.tensor(float(v)) for name, v in scheduled_numbers(state).items()}
        inputs = self.sample(model, data, batch)
        with one_thread(), reading_schedule(model, numbers) as view:
            program = trace(self.step, view, inputs)
        compiled = compile_program(program)
        tensors, fastest = tensors_of(state), Threads()

        def run(state, data, batch):
            numbers = [torch.tensor(float(v)) for v in scheduled_numbers(state).values()]
            with one_thread():  # which is no slower for so few images, and waits for no other
                inputs = self.sample(state, data, batch)
            return fastest(functools.partial(compiled, *tensors, *numbers, *inputs))

        return run

"""The step compiled by TorchInductor, the compiler behind torch.compile, then captured."""

import contextlib

import torch

from .cuda_graph import CUDAGraph
from .traced import scheduled_numbers, tensors_of, trace, variant_of


class CompiledGraph(CUDAGraph):
    """Run as a CUDA graph a step that was compiled before: fewer kernels, after a longer start."""

    kind = "compiled"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.captured_step = CompiledStep(self.step)


class CompiledStep:
    """A step, called like the one it is made from, compiled once for each variant."""

    def __init__(self, step):
        self.step, self.programs = step, {}

    def __call__(self, state, *inputs):
        variant = variant_of(state)
        if variant not in self.programs:
            self.programs[variant] = compile_by_inductor(self.step, state, inputs)
        tensors = [*tensors_of(state), *scheduled_numbers(state).values(), *inputs]
        with torch.no_grad():  # the gradients are part of the program
            return self.programs[variant](*tensors)


def compile_by_inductor(step, state, inputs):
    """Trace a step and return what `trace` does, compiled by torch.compile at its first call."""
    with adam_in_plain_operations(state):
        program = trace(step, state, inputs)
    for node in reversed(program.graph.nodes):  # the profiler's marks would cut it up
        if str(node.target).startswith("profiler."):
            program.graph.erase_node(node)
    program.recompile()
    return torch.compile(program)


@contextlib.contextmanager
def adam_in_plain_operations(state):
    """Have the optimisers update by operations that torch.compile can join with others.

    It does not know the fused Adam with its rate in a tensor.
    """
    optimizers = state.generator_optimizer, state.discriminator_optimizer
    for optimizer in optimizers:
        optimizer.step = lambda self=optimizer: plain_adam(self)
    try:
        yield
    finally:
        for optimizer in optimizers:
            del optimizer.step


@torch.no_grad()
def plain_adam(optimizer):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), for all parameters at once."""
    (group,) = optimizer.param_groups
    parameters = [p for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    names = ("step", "exp_avg", "exp_avg_sq")
    steps, means, squares = ([optimizer.state[p][name] for p in parameters] for name in names)
    beta1, beta2 = group["betas"]
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    count = steps[0]  # the same of all
    rate = group["lr"] / (1 - beta1**count)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, (1 - beta2**count).sqrt())
    torch._foreach_add_(roots, group["eps"])
    updates = torch._foreach_div(means, roots)
    torch._foreach_mul_(updates, rate)
    torch._foreach_sub_(parameters, updates)

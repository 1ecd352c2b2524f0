"""Engines: what runs the one training step, and how one of them is chosen.

An engine is made from two functions, `sample_batch` and a training step, and called with a state,
the data and the indices of one batch; it updates the state and returns the statistics. Every engine
computes what the two functions say, to the last digits of a float. None knows a recipe: what
changes from step to step comes from the optimisers and from state.schedule.
"""

import os
import warnings

from .compiled import Compiled
from .cuda_graph import CUDAGraph
from .distributed import Distributed, is_distributed, process_count
from .eager import Eager
from .inductor import CompiledGraph

__all__ = ["ENGINES", "make_engine", "process_count"]

ENGINES = ("auto", "eager", "compiled", "graph")

# The length of a run, in steps, from which an engine saves about as much time as its start costs.
# In benchmarks/results/compilers.json compiling pays from 605 steps of the original recipe on, and
# from 1,310 of the tuned one. Capturing a CUDA graph takes under a second.
COMPILING_PAYS = 1000
CAPTURING_PAYS = 200


def make_engine(name, device, steps, sample, step, set_schedule=None):
    """Return the engine of this name; "auto" chooses by device and by the steps of the whole run.

    The whole run counts, not what is left of it, so that a resumed one uses the same engine.
    set_schedule: called with the state before each step by those that make several in one call.
    """
    forgiving = name == "auto"
    if is_distributed():
        if name not in ("auto", "eager"):
            raise ValueError(f"engine must be 'auto' or 'eager' on several processes; got {name!r}")
        return Distributed(sample, step)
    if (world := os.environ.get("WORLD_SIZE", "1")) != "1":
        warnings.warn(
            f"WORLD_SIZE is {world}, but this process was not joined to the others: each trains "
            "alone, on all images; `torchrun ... -m cgan_utils train` joins them",
            stacklevel=4,
        )
    if name == "graph" and device.type != "cuda":
        raise ValueError(f"engine: 'graph' needs a CUDA device; this run is on {device}")
    if name == "compiled" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"engine: 'compiled' needs a CPU or CUDA device; this run is on {device}")
    if name == "auto" and device.type == "cuda" and steps >= CAPTURING_PAYS:
        name = "graph"
    if name == "auto" and device.type == "cpu" and steps >= COMPILING_PAYS:
        name = "compiled"
    if name == "compiled" and device.type == "cuda":
        return CompiledGraph(sample, step, forgiving, set_schedule)
    if name == "compiled":
        return Compiled(sample, step, forgiving)
    if name == "graph":
        return CUDAGraph(sample, step, forgiving, set_schedule)
    return Eager(sample, step)

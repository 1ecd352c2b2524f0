"""The step on several processes."""

from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from .eager import Eager
from .traced import state_view


class Distributed(Eager):
    """Run the step on several processes, each on its own share of the batch.

    All sample the same noise for the whole batch, so that no share repeats another's and any
    number of processes computes the same. DistributedDataParallel averages the gradients. Batch
    norm, if any, sees its share only.
    """

    name = "distributed"

    def __init__(self, sample, step):
        super().__init__(sample, step)
        self.parallel = None

    def __call__(self, state, data, batch):
        if self.parallel is None:
            self.parallel = {
                name: DistributedDataParallel(getattr(state, name))
                for name in ("generator", "discriminator")
            }
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        whole = self.sample(state, data, batch)
        share = [tensor.chunk(processes)[rank] for tensor in whole]
        stats = self.step(state_view(state, **self.parallel), *share)
        distributed.all_reduce(stats)
        return stats / processes


def is_distributed():
    """Whether this process was joined to others, as `python -m cgan_utils` does under torchrun."""
    return distributed.is_initialized()


def process_count():
    """How many processes share the training: 1, unless they were joined."""
    return distributed.get_world_size() if is_distributed() else 1

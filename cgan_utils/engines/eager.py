"""The engine that every other one must agree with: PyTorch, one operation after the other."""


class Eager:
    """Run the step eagerly."""

    name = "eager"

    def __init__(self, sample, step):
        self.sample, self.step = sample, step

    def __call__(self, state, data, batch):
        return self.step(state, *self.sample(state, data, batch))

    def grouped(self, state, batches):
        """Return the batches of an epoch as the engine is to be called with them: one by one."""
        return batches

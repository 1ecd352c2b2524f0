"""The engine that every other one must agree with: PyTorch, one operation after the other."""


class Eager:
    """Run the step eagerly."""

    name = "eager"

    def __init__(self, sample, step):
        self.sample, self.step = sample, step

    def __call__(self, state, data, batch):
        return self.step(state, *self.sample(state, data, batch))

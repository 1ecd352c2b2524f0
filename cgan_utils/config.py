"""The hyper-parameters of a conditional GAN."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ._checks import check_count, check_number, check_tuple, check_type

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

STATS = ("loss_d", "loss_g", "d_real", "d_fake")  # what a training step returns, in this order


@dataclasses.dataclass(frozen=True)
class CGANConfig:
    """Hyper-parameters of one conditional GAN. `cfg.replace(epochs=1)` makes a changed copy.

    Raises TypeError or ValueError, naming the field, for a value that cannot be trained with.
    """

    recipe: ClassVar[str] = "original"
    recipes: ClassVar[dict[str, type]] = {}  # name -> the class of its configurations
    min_batch_size: ClassVar[int] = 1  # images that a training step needs
    min_steps: ClassVar[int] = 8000  # updates of each network that other images need: `for_data`

    classes: tuple[str, ...] = FASHION_MNIST_CLASSES  # one name per label 0, 1, 2, ...
    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width

    embedding_dim: int = 10  # length of the learned vector that stands for a label
    latent_dim: int = 100  # length of the noise vector z
    hidden_dim: int = 256  # width of the hidden layers of both networks

    epochs: int = 10  # passes over the training images
    batch_size: int = 32  # images of one training step
    learning_rate: float = 2e-4  # Adam's, for both networks
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's decay rates of the two moments

    def __init_subclass__(cls, **kwargs):
        """Let an add-on's recipe be found by its name: `CGANConfig.<recipe>()`."""
        super().__init_subclass__(**kwargs)
        if "recipe" in vars(cls):
            CGANConfig.recipes[cls.recipe] = cls
            setattr(CGANConfig, cls.recipe, getattr(cls, cls.recipe))

    @classmethod
    def original(cls) -> "CGANConfig":
        """Return the blog post's recipe, with our hidden_dim, latent_dim and learning rate.

        The post does not give these three.
        """
        return cls()

    def replace(self, **changes) -> "CGANConfig":
        """Return a copy with some fields changed."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"CGANConfig has no field {name!r}; it has {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def for_data(self, data) -> "CGANConfig":
        """Return a copy that fits a `LabelledImages`: its classes, image shape and length.

        Training needs steps, not epochs. If the epochs make fewer than `min_steps` steps, there are
        more of them. The same few images are then seen so often that D gets far ahead of G; a first
        decay rate of Adam of at most 0.5 keeps the two together (DCGAN: Radford et al. 2016, arXiv
        1511.06434). z has at most a quarter as many numbers as an image: with 100 for 8 x 8 pixels
        a run could collapse (benchmarks/latent_dim.py). For FashionMNIST the copy is equal.
        """
        shape = tuple(data.images.shape[1:])
        config = self.replace(
            classes=tuple(data.classes),
            image_shape=shape,
            latent_dim=min(self.latent_dim, max(1, math.prod(shape) // 4)),
        )
        steps_per_epoch = math.ceil(len(data) / self.batch_size)
        if self.epochs * steps_per_epoch >= self.min_steps:
            return config
        return config.replace(
            epochs=math.ceil(self.min_steps / steps_per_epoch),
            betas=(min(0.5, self.betas[0]), self.betas[1]),
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Elements of one flattened image: channels x height x width."""
        return math.prod(self.image_shape)

    def to_dict(self) -> dict:
        """Return plain lists, numbers and strings: a checkpoint then needs no pickled class."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        return {"recipe": self.recipe, **fields}

    @classmethod
    def from_dict(cls, fields: dict) -> "CGANConfig":
        """Return the configuration that `to_dict` wrote."""
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls.recipes[values.pop("recipe")]().replace(**values)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        check_tuple("classes", self.classes, str)
        if len(self.classes) < 1 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be distinct names, at least one; got {self.classes}")
        check_tuple("image_shape", self.image_shape, int, length=3)
        check_tuple("betas", self.betas, float, length=2)
        for size in self.image_shape:
            check_count("image_shape", size)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                check_count(field.name, value)
            elif field.type is bool:
                check_type(field.name, value, bool)
            elif field.type is float:
                check_number(field.name, value)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got {self.betas}")


def _plain(value):
    """Return numpy's scalars as Python's, also in a tuple: no file then needs numpy to be read."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


CGANConfig.recipes[CGANConfig.recipe] = CGANConfig

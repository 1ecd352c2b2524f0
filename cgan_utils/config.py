"""What a run is made of: hyper-parameters, class names, device, seeds, folders."""

import contextlib
import dataclasses
import math
import os
import tempfile
import uuid
from pathlib import Path

import numpy as np
import torch

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

MEASURES = ("loss_d", "loss_g", "d_real", "d_fake")  # what a training step returns, in this order


@dataclasses.dataclass(frozen=True)
class CGANConfig:
    """Hyper-parameters of one conditional GAN. `cfg.replace(epochs=1)` makes a changed copy.

    Raises TypeError or ValueError, naming the field, for a value that cannot be trained with.
    """

    classes: tuple[str, ...] = FASHION_MNIST_CLASSES  # one name per label 0, 1, 2, ...
    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, height, width

    embedding_dim: int = 10  # length of the learned vector that stands for a label
    latent_dim: int = 100  # length of the noise vector z
    hidden_dim: int = 256  # width of the hidden layers of both networks
    hidden_layers: int = 2

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 2e-4  # Adam's, for both networks
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's decay rates of the two moments

    # What the post does without, and notebook 06 adds one by one
    learning_rate_decay: bool = False  # linearly, to 0 at the end of the last epoch
    ema_decay: float = 0.0  # of the moving average of G's weights that is sampled from; 0: none
    projection: bool = False  # the label enters D through an inner product instead of its input
    gradient_penalty: float = 0.0  # R1's gamma; a falling learning rate takes it to a tenth
    conditional_norm: bool = False  # batch norm in G that z and the label scale and shift
    fine_detail: bool = False  # D also sees how pixels differ from their neighbours
    mismatch_weight: float = 0.0  # of real images with a wrong label, for D to reject; 0: none
    shared_patches: bool = False  # G ends in one small MLP that draws a patch at every place
    latent_scale: float = 1.0  # standard deviation of z in `sample`; it is 1 in training

    @classmethod
    def original(cls):
        """The blog post's recipe. It gives no hidden_dim, latent_dim or learning rate: ours."""
        return cls()

    @classmethod
    def tuned(cls):
        """The same pair of MLPs, still with BCE and Adam, made good: see notebook 06."""
        return cls(
            embedding_dim=32,
            latent_dim=64,
            hidden_dim=512,
            hidden_layers=3,
            epochs=40,
            batch_size=96,
            learning_rate=1.2e-3,
            betas=(0.0, 0.99),
            learning_rate_decay=True,
            ema_decay=0.999,
            projection=True,
            gradient_penalty=2.0,
            conditional_norm=True,
            fine_detail=True,
            mismatch_weight=1.0,
            shared_patches=True,
            latent_scale=1.1,
        )

    def replace(self, **changes):
        """A copy with some fields changed."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"CGANConfig has no field {name!r}; it has {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    @property
    def num_classes(self):
        return len(self.classes)

    @property
    def image_size(self):
        """Numbers in one flattened image: channels x height x width."""
        return math.prod(self.image_shape)

    def to_dict(self):
        """Plain lists, numbers and strings, so that a checkpoint needs no pickled class."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields):
        """The inverse of `to_dict`."""
        return cls().replace(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        )

    def __post_init__(self):
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
        if not all(0 <= beta < 1 for beta in (*self.betas, self.ema_decay)):
            raise ValueError(
                f"betas and ema_decay must lie in [0, 1); got {self.betas} and {self.ema_decay}"
            )
        if self.mismatch_weight > 0 and not (self.projection and self.num_classes > 1):
            raise ValueError(
                "mismatch_weight must be 0 without projection or with one class; got "
                f"{self.mismatch_weight}, projection {self.projection}, {self.num_classes} classes"
            )


def check_type(name, value, *types):
    """Raise TypeError unless `value` is of one of the types."""
    if not isinstance(value, types):
        allowed = " or ".join(kind.__name__ for kind in types)
        raise TypeError(f"{name} must be a {allowed}; got a {type(value).__name__}")


def check_tensor(name, value, dtype, *shape):
    """Raise unless `value` is a tensor of this dtype and shape; a name is any length but 0.

    dtype: a torch dtype, or "float" for any with a floating point.
    """
    written = str(shape).replace("'", "")
    found = kind(value)
    if dtype == "float":
        fits = isinstance(value, torch.Tensor) and value.is_floating_point()
    else:
        fits = found == str(dtype)
    if not fits:
        raise TypeError(f"{name} must be a {dtype} tensor {written}; got a {found}")
    lengths = zip(shape, value.shape, strict=False)
    fits = all(n == due or (isinstance(due, str) and n > 0) for due, n in lengths)
    if value.dim() != len(shape) or not fits:
        rule = ", not empty" if any(isinstance(due, str) for due in shape) else ""
        raise ValueError(f"{name} must have shape {written}{rule}; got {tuple(value.shape)}")


def check_range(name, indices, count):
    """Raise unless all of the indices, int64 (N,), lie in 0..count-1."""
    low, high = (end.item() for end in indices.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must lie in 0..{count - 1}; got {low}..{high}")


def kind(value):
    """What to call it in a message: a tensor's dtype, or the type."""
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def check_count(name, value, minimum=1, maximum=math.inf):
    """Raise unless `value` is a whole number from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {value}")


def check_number(name, value):
    """Raise unless `value` is a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite; got {value}")


def check_tuple(name, value, item_type, length=None):
    """Raise TypeError unless `value` is a tuple of such items, and of this length if not None."""
    items_fit = isinstance(value, tuple) and all(isinstance(item, item_type) for item in value)
    if not items_fit or (length is not None and len(value) != length):
        size = "" if length is None else f"{length} "
        raise TypeError(f"{name} must be a tuple of {size}{item_type.__name__}; got {value!r}")


def project_folder():
    """The README's folder in a clone; for a package installed elsewhere, the working folder."""
    clone = Path(__file__).resolve().parents[1]
    return clone if (clone / "pyproject.toml").exists() else Path.cwd()


def data_folder():
    """Where the dataset lies: CGAN_DATA_DIR if set, else data/ beside the README."""
    return Path(os.environ.get("CGAN_DATA_DIR") or project_folder() / "data")


def runs_folder():
    """Where checkpoints and pictures go: CGAN_RUNS_DIR if set, else runs/ beside the README.

    It is made if it is not there yet.
    """
    folder = Path(os.environ.get("CGAN_RUNS_DIR") or project_folder() / "runs")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_writable(folder):
    """Make the folder if it is not there yet; raise OSError unless files can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path, write):
    """Call `write(file)` on a binary file that appears at `path` whole or not at all.

    It is written beside its final name, flushed to the disk, then renamed, so that an interruption
    at any moment leaves the previous file or the new one. Missing folders are made; returns path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def choose_device(device="auto"):
    """A torch.device: "auto" takes CUDA if there is one, else the CPU; other names are checked.

    Raises TypeError or ValueError for a name torch does not know or a device that is not there.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'auto', 'cpu' or 'cuda'; got {device!r}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be 'auto', 'cpu' or a device this machine has; got {device!r} ({reason})"
        ) from error


def random_stream(seed, *purpose, device="cpu"):
    """A torch.Generator whose numbers are independent for each seed and purpose (whole numbers).

    torch's CPU generator keeps only 32 bits of a seed, so seeds cannot simply be added up;
    numpy's SeedSequence mixes them.
    """
    mixed = np.random.SeedSequence([seed, *purpose]).generate_state(1).item()
    return torch.Generator(device).manual_seed(mixed)


@contextlib.contextmanager
def seeded(seed, *purpose):
    """For a while, the CPU's global random numbers are those of `random_stream`."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_stream(seed, *purpose).get_state())
        yield

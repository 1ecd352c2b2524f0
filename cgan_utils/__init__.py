"""A conditional GAN on FashionMNIST, small enough to read and fast enough to use."""

from . import plotting, pretrained, tuned
from ._runtime import choose_device, data_folder, runs_folder
from .checkpoints import load_checkpoint, save_checkpoint
from .classifier import load_classifier, train_classifier
from .config import FASHION_MNIST_CLASSES, CGANConfig
from .data import LabelledImages, load_fashion_mnist, normalize
from .diagnosis import class_spread, nearest_centroid_accuracy
from .evaluation import (
    compute_metrics,
    density_and_coverage,
    evaluate,
    format_report,
    frechet_distance,
    precision_and_recall,
)
from .models import Discriminator, Generator
from .plotting import plot_class_grid, plot_history, plot_images, show, show_source
from .pretrained import load_pretrained
from .sampling import class_grid, sample, sample_latent
from .state import TrainingState
from .training import (
    discriminator_loss,
    discriminator_step,
    generator_loss,
    generator_step,
    sample_batch,
    train,
    train_epoch,
    training_step,
)

__all__ = [
    "FASHION_MNIST_CLASSES",
    "CGANConfig",
    "Discriminator",
    "Generator",
    "LabelledImages",
    "TrainingState",
    "choose_device",
    "class_grid",
    "class_spread",
    "compute_metrics",
    "data_folder",
    "density_and_coverage",
    "discriminator_loss",
    "discriminator_step",
    "evaluate",
    "format_report",
    "frechet_distance",
    "generator_loss",
    "generator_step",
    "load_checkpoint",
    "load_classifier",
    "load_fashion_mnist",
    "load_pretrained",
    "nearest_centroid_accuracy",
    "normalize",
    "plot_class_grid",
    "plot_history",
    "plot_images",
    "plotting",
    "precision_and_recall",
    "pretrained",
    "runs_folder",
    "sample",
    "sample_batch",
    "sample_latent",
    "save_checkpoint",
    "show",
    "show_source",
    "train",
    "train_classifier",
    "train_epoch",
    "training_step",
    "tuned",
]

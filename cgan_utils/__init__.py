"""A conditional GAN on FashionMNIST, small enough to read and fast enough to use."""

from .checkpoints import (
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_rolling,
)
from .config import FASHION_MNIST_CLASSES, CGANConfig, choose_device, data_folder, runs_folder
from .data import LabelledImages, load_fashion_mnist, normalize
from .evaluation import (
    density_and_coverage,
    evaluate,
    format_report,
    frechet_distance,
    judge_images,
)
from .judge import load_judge, train_classifier
from .models import ClassNorm, Discriminator, Generator, fine_detail
from .plotting import (
    COLOUR_D,
    COLOUR_G,
    plot_atlas,
    plot_class_bars,
    plot_class_grid,
    plot_history,
    plot_images,
    plot_matrix,
    plot_run,
    show,
    show_source,
)
from .pretrained import load_pretrained, pretrained_record
from .sampling import class_grid, draw_latent, sample
from .training import (
    discriminator_loss,
    discriminator_step,
    generator_loss,
    generator_step,
    gradient_penalty,
    train,
    train_epoch,
    training_step,
    update_average,
)

__all__ = [
    "COLOUR_D",
    "COLOUR_G",
    "FASHION_MNIST_CLASSES",
    "CGANConfig",
    "ClassNorm",
    "Discriminator",
    "Generator",
    "LabelledImages",
    "TrainingState",
    "choose_device",
    "class_grid",
    "data_folder",
    "density_and_coverage",
    "discriminator_loss",
    "discriminator_step",
    "draw_latent",
    "evaluate",
    "fine_detail",
    "format_report",
    "frechet_distance",
    "generator_loss",
    "generator_step",
    "gradient_penalty",
    "judge_images",
    "load_checkpoint",
    "load_fashion_mnist",
    "load_judge",
    "load_pretrained",
    "newest_checkpoint",
    "normalize",
    "plot_atlas",
    "plot_class_bars",
    "plot_class_grid",
    "plot_history",
    "plot_images",
    "plot_matrix",
    "plot_run",
    "pretrained_record",
    "runs_folder",
    "sample",
    "save_checkpoint",
    "save_rolling",
    "show",
    "show_source",
    "train",
    "train_classifier",
    "train_epoch",
    "training_step",
    "update_average",
]

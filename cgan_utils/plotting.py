"""What the notebooks draw: image grids, loss curves, and the package's own source.

Everything here takes plain tensors and lists and returns a matplotlib Figure (or shows one).
"""

import inspect
import io
import math
import textwrap

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from torchvision.utils import make_grid

# Two colours that stay apart for colour-blind readers (Okabe & Ito 2008): G warm, D cool.
COLOUR_D, COLOUR_G = "#0072B2", "#D55E00"


def show(figure, alt):
    """Show a figure with alternative text, for screen readers and for readers of the plain text."""
    if not isinstance(figure, Figure):
        raise TypeError(f"figure must be a matplotlib Figure; got a {type(figure).__name__}")
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt must say in words what the figure shows; got {alt!r}")
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    Image.open(full).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    bundle = {"image/png": small.getvalue(), "text/plain": alt}
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)


def show_source(*objects):
    """Show the source of functions or classes of the package, as the package has it."""
    code = "\n\n".join(textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in objects)
    display({"text/markdown": f"```python\n{code}\n```", "text/plain": code}, raw=True)


def plot_class_grid(images, classes, column_titles=None):
    """Rows = classes by name. images float (len(classes) * columns, C, H, W) in [-1, 1], by row.

    The grey scale is fixed at -1..1, so that a fault of range is seen, not stretched away.
    """
    _check_images(images)
    if len(classes) == 0 or len(images) % len(classes) != 0:
        raise ValueError(
            f"images must be as many for each of the {len(classes)} classes; got {len(images)}"
        )
    columns = len(images) // len(classes)
    height, width = images.shape[2:]
    inches = 84 / max(height, width) / 100  # of one pixel: sharp, because each becomes whole dots
    size = (2 + columns * (width + 2)) * inches, (2 + len(classes) * (height + 2)) * inches
    figure = plt.figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))  # the labels stand outside; saving makes room for them
    _draw_grid(axes, images, columns)
    axes.set_yticks([2 + height / 2 + row * (height + 2) for row in range(len(classes))], classes)
    if column_titles is not None:
        places = [2 + width / 2 + column * (width + 2) for column in range(columns)]
        axes.set_xticks(places, column_titles)
        axes.xaxis.tick_top()
    return figure


def plot_images(images, titles, columns=8):
    """One picture per title, in rows of `columns`. images float (N, C, H, W) in [-1, 1]."""
    _check_images(images)
    if len(titles) != len(images):
        raise ValueError(f"titles must be one per image, {len(images)}; got {len(titles)}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.4 * columns, 1.7 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        _draw_grid(axes, image[None], 1)
        axes.set_title(title, fontsize=9)
    return figure


def plot_history(history):
    """Losses (left, with the values of a D that only guesses) and D's verdicts (right) per epoch.

    history: lists loss_d, loss_g, d_real, d_fake, one value per epoch.
    """
    names = ("loss_d", "loss_g", "d_real", "d_fake")
    if len({len(history.get(name, ())) for name in names}) != 1 or not history.get("loss_d"):
        raise ValueError(f"history must have one value per epoch of each of {', '.join(names)}")
    epochs = range(1, len(history["loss_d"]) + 1)
    figure, (losses, verdicts) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    losses.plot(epochs, history["loss_d"], "o-", color=COLOUR_D, label="loss of D")
    losses.plot(epochs, history["loss_g"], "s-", color=COLOUR_G, label="loss of G")
    losses.axhline(2 * math.log(2), color=COLOUR_D, linestyle=":", label="D guesses: 2 ln 2")
    losses.axhline(math.log(2), color=COLOUR_G, linestyle=":", label="D guesses: ln 2")
    losses.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, None))
    verdicts.plot(epochs, history["d_real"], "o-", color=COLOUR_D, label="D(x), real images")
    verdicts.plot(epochs, history["d_fake"], "s-", color=COLOUR_G, label="D(G(z)), generated")
    verdicts.axhline(0.5, color="grey", linestyle=":", label="D guesses: 1/2")
    verdicts.set(xlabel="epoch", ylabel="mean probability of being real", ylim=(0, 1))
    for axes in (losses, verdicts):
        axes.legend(fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_matrix(matrix, classes, label, limits, rows="", columns=""):
    """A number for each pair of classes, as colours. matrix (len(classes), len(classes)).

    limits: the values of the two ends of the scale; white is 0 if they are opposite numbers.
    """
    matrix = torch.as_tensor(matrix)
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(
            f"matrix must have a row and a column for each of the {len(classes)} classes; "
            f"got {tuple(matrix.shape)}"
        )
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    colours = "PuOr" if limits[0] == -limits[1] else "cividis"
    picture = axes.imshow(matrix.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel=columns, ylabel=rows)
    figure.colorbar(picture, label=label)
    return figure


def plot_class_bars(values, ceilings, label):
    """One bar per class and a line at what real images reach. Both: {class name: value}."""
    if missing := [name for name in values if name not in ceilings]:
        raise ValueError(f"ceilings must have a value for each bar; {', '.join(missing)} have none")
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    places = range(len(values))
    axes.bar(places, values.values(), color=COLOUR_G, label="generated")
    axes.hlines(
        [ceilings[name] for name in values],
        [place - 0.4 for place in places],
        [place + 0.4 for place in places],
        color="black",
        label="real images",
    )
    axes.set_xticks(places, values, rotation=30, ha="right")
    axes.set(ylabel=label, ylim=(0, 1.05))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    return figure


def _check_images(images):
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor with values in [-1, 1]; got {kind}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images must have shape (N, 1 or 3, H, W); got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("images must be finite; got NaN or infinity")


def _draw_grid(axes, images, columns):
    tiled = make_grid(images.detach().cpu(), nrow=columns, padding=2, pad_value=1)
    rgb = ((tiled + 1) / 2).clamp(0, 1).permute(1, 2, 0)  # (height, width, 3)
    axes.imshow(rgb.numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)

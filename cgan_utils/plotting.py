"""The figures of the notebooks: image grids, loss curves, and the package's own source.

The functions take plain tensors and lists and return a matplotlib Figure (or show one). pyplot does
not keep these figures open, so their memory is free once nobody uses them.
"""

import contextlib
import functools
import inspect
import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ._checks import check_tensor
from .config import STATS

# Two colours that colour-blind readers can tell apart (Okabe & Ito 2008): G warm, D cool.
COLOUR_D, COLOUR_G = "#0072B2", "#D55E00"


class _Figure(Figure):
    """A figure that pyplot does not know; a notebook shows it if it is the last value of a cell."""

    def _repr_png_(self):
        return _as_png(self).getvalue()


def show(figure: Figure, alt: str, colours: int | None = 256) -> None:
    """Show a figure with alternative text, for screen readers and for readers of the plain text.

    colours: at most 256; fewer make a notebook with many figures smaller, and 32 still look nearly
    the same. None keeps pale colours apart from grey, as a colour scale needs. Outside IPython, as
    in a script, this prints the text and how to save the figure. Raises ValueError without a text.
    """
    _check_alt(alt)
    _show_png(_reduce_colours(_as_png(figure), colours), alt)


def show_animation(figures: Sequence[Figure], alt: str, seconds: float = 0.8) -> None:
    """Show grey figures of one size one after the other, again and again, with alternative text.

    The result is an animated PNG, which plays wherever a notebook is shown; a viewer that cannot
    play it shows the last figure. Raises ValueError without a text.
    """
    _check_alt(alt)
    frames = [Image.open(_reduce_colours(_as_png(figure), 12)).convert("L") for figure in figures]
    png = io.BytesIO()
    frames[-1].save(
        png,
        format="PNG",
        save_all=True,
        default_image=True,
        append_images=frames,
        duration=[*[1000 * seconds] * (len(frames) - 1), 3000 * seconds],
        loop=0,
    )
    _show_png(png, alt)


def _check_alt(alt):
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt must say in words what the figure shows; got {alt!r}")


def _as_png(figure):
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    return png


def _show_png(png, alt):
    bundle = {"image/png": png.getvalue(), "text/plain": alt}
    hint = "\n(Figures are shown in notebooks only; figure.savefig(path) saves one.)"
    _display(bundle, hint, metadata={"image/png": {"alt": alt}})


def _display(bundle, hint="", **options):
    if get_ipython() is None:  # a script, where `display` would print all of the bundle, bytes too
        print(bundle["text/plain"] + hint)
    else:
        display(bundle, raw=True, **options)


def _reduce_colours(png, count):
    """Return a PNG with at most this many colours; those that are nearly grey become grey.

    With None instead of a number, there are 256 colours, and all keep their tint.
    """
    image = Image.open(png).convert("RGB")
    if count is None:
        image = image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    else:
        image = image.quantize(count, Image.Quantize.MAXCOVERAGE)
        palette = np.array(image.getpalette()).reshape(-1, 3)
        nearly_grey = np.ptp(palette, axis=1) < 40  # quantize leaves a tint in them
        palette[nearly_grey] = palette[nearly_grey].mean(axis=1, keepdims=True)
        image.putpalette(palette.flatten().tolist())
    smaller = io.BytesIO()
    image.save(smaller, format="png", optimize=True)
    return smaller


def show_source(*objects) -> None:
    """Show the source of functions or classes of the package, as the package has it."""
    code = "\n\n".join(textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in objects)
    _display({"text/markdown": f"```python\n{code}\n```", "text/plain": code})


def plot_class_grid(
    images: Tensor, classes: Sequence[str], column_titles: Sequence[str] | None = None
) -> Figure:
    """Plot one row of images per class, with the class names at the left.

    images: float (len(classes) * columns, C, H, W) in [-1, 1], row by row, with 1 or 3 channels.
    The grey scale is fixed at -1..1: values out of range are clipped, not rescaled. Raises
    TypeError or ValueError for images that do not fit.
    """
    figure = _Figure(figsize=_grid_size(images, classes, dots=84))
    axes = _add_grid(figure, images, classes, dots=84)
    if column_titles is not None:
        width = images.shape[3]
        places = [2 + width / 2 + i * (width + 2) for i in range(len(images) // len(classes))]
        titles, style = _plain_text(column_titles, width=11)
        axes.set_xticks(places, titles, **style)
        axes.xaxis.tick_top()
    return figure


def plot_training_run(
    title: str,
    stats: Tensor,
    images: Tensor,
    classes: Sequence[str],
    healthy: Tensor | None = None,
) -> Figure:
    """Plot a short run: its losses, its outputs of D, and the images that G makes.

    stats: float (steps, 4), as `TrainingState.stats`: loss_d, loss_g, D(x), D(G(z)); plotted as
    means of 50 steps. healthy: the same of a run to compare with, plotted thin and dashed, without
    a legend: a series of runs needs one only, in the figure of the healthy run itself.
    Losses above 10 are plotted on a logarithmic scale. images, classes: see `plot_class_grid`.
    """
    width, height = _grid_size(images, classes, dots=84)
    panel, left = (height - 0.5) / 2, 4.5  # inches
    figure = _Figure(figsize=(left + width, height))
    (title,), style = _plain_text([title], width=105)
    figure.suptitle(title, x=0, y=1.06, ha="left", va="bottom", fontsize=10, **style)
    share = 3.2 / (left + width), panel / height
    losses = figure.add_axes((0, 1 - share[1], *share))
    probabilities = figure.add_axes((0, 0, *share), sharex=losses)
    _add_grid(figure, images, classes, dots=84, left=left, name_width=11)
    if healthy is not None:
        _plot_dashed(losses, probabilities, healthy)
    steps, means = _means_of_50(stats)
    style = {"markersize": 2}
    _plot_loss(losses, steps, means["loss_d"], "D", style)
    _plot_loss(losses, steps, means["loss_g"], "G", style)
    _plot_probabilities(probabilities, steps, means, style)
    losses.autoscale(axis="y")
    if max(*means["loss_d"], *means["loss_g"]) > 10:
        losses.set_yscale("symlog", linthresh=2)  # linear up to 2: a loss may be 0
    losses.tick_params(labelbottom=False)
    for axes, blue, orange in (
        (losses, "loss of D", "loss of G"),
        (probabilities, "D(x), real", "D(G(z)), generated"),
    ):
        axes.set_title(blue, loc="left", fontsize=9, color=COLOUR_D)
        axes.set_title(orange, loc="right", fontsize=9, color=COLOUR_G)
    losses.set(ylabel="nats", ylim=(0, None))
    probabilities.set(ylabel="probability", xlabel="step (dashed: the healthy run)")
    if healthy is None:
        probabilities.set(xlabel="step")
        for axes in (losses, probabilities):
            axes.legend(fontsize=7)
    return figure


def plot_class_grids(
    grids: Mapping[str, Tensor], classes: Sequence[str], across: int = 4
) -> Figure:
    """Plot class grids of one size next to each other, `across` in a row: {title: images}.

    images, classes: see `plot_class_grid`. The first grid of each row has the class names.
    """
    if len({images.shape for images in grids.values()}) != 1:
        raise ValueError("grids must be class grids of one size, at least one")
    width, height = _grid_size(next(iter(grids.values())), classes, dots=84)
    rows = math.ceil(len(grids) / across)
    figure = _Figure(figsize=(across * (width + 0.3), rows * (height + 0.55)))
    titles, style = _plain_text(grids)
    for place, (title, images) in enumerate(zip(titles, grids.values(), strict=True)):
        row, column = divmod(place, across)
        left, bottom = column * (width + 0.3), (rows - 1 - row) * (height + 0.55)
        axes = _add_grid(figure, images, classes, dots=84, left=left, bottom=bottom)
        axes.set_title(title, fontsize=10, **style)
        axes.tick_params(labelleft=column == 0)
    return figure


def plot_images(images: Tensor, titles: Sequence[str], columns: int = 8) -> Figure:
    """Plot images float (N, C, H, W) in [-1, 1], each under its title, `columns` in a row."""
    _check_images(images)
    if len(titles) != len(images):
        raise ValueError(f"titles must be one per image, {len(images)}; got {len(titles)}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = _Figure(figsize=(1.4 * columns, 1.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    titles, style = _plain_text(titles)
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        _draw_grid(axes, image[None], 1)
        axes.set_title(title, fontsize=9, **style)
    return figure


def plot_history(
    history: Mapping[str, Sequence[float]], every: int = 1, unit: str = "epoch"
) -> Figure:
    """Plot D's loss, G's loss and D's outputs, each with the value of a D that only guesses.

    history: loss_d, loss_g, d_real, d_fake, each with one value per `every` units, such as
    `TrainingState.history` with one per epoch.
    """
    x = [every * (i + 1) for i in range(len(history["loss_d"]))]
    style = {"markersize": 4 if len(x) <= 40 else 0}
    figure = _Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    loss_d, loss_g, probabilities = panels
    _plot_loss(loss_d, x, history["loss_d"], "D", style)
    _plot_loss(loss_g, x, history["loss_g"], "G", style)
    _plot_probabilities(probabilities, x, history, style)
    for axes in panels:
        axes.set(xlabel=unit)
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.2), borderaxespad=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_matrix(
    matrix,
    classes: Sequence[str],
    label: str,
    limits: tuple[float, float],
    rows: str = "",
    columns: str = "",
) -> Figure:
    """Plot a value for each pair of classes as a colour.

    matrix: a tensor or lists, (len(classes), len(classes)). limits: the values at the two ends of
    the colour scale; if they are opposite numbers, 0 is white. rows, columns: what the axes are.
    Raises ValueError for a matrix of another shape.
    """
    matrix = torch.as_tensor(matrix)
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(
            f"matrix must have a row and a column for each of the {len(classes)} classes; "
            f"got {tuple(matrix.shape)}"
        )
    figure = _Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    colours = "PuOr" if limits[0] == -limits[1] else "cividis"
    image = axes.imshow(matrix.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1])
    names, style = _plain_text(classes)
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", **style)
    axes.set_yticks(range(len(classes)), names, **style)
    axes.set(xlabel=columns, ylabel=rows)
    figure.colorbar(image, label=label)
    return figure


def plot_class_dots(values: Mapping[str, float], real: Mapping[str, float], label: str) -> Figure:
    """Plot a dot per class, and a line at the value of real images. Both: {class name: value}."""
    figure = _Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(values))
    lines = [real[name] for name in values]
    axes.vlines(places, list(values.values()), lines, color="grey", linewidth=1)
    axes.plot(places, lines, "k_", markersize=26, label="real images")
    axes.plot(places, values.values(), "o", color=COLOUR_G, label="generated")
    names, style = _plain_text(values)
    axes.set_xticks(places, names, rotation=30, ha="right", **style)
    axes.set(ylabel=label)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    return figure


def _check_images(images):
    check_tensor("images", images, "float", "N", "C", "H", "W")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels; got {images.shape[1]}")
    if not images.isfinite().all():
        raise ValueError("images must be finite; got NaN or infinity")


def _grid_size(images, classes, dots):
    """Return the size in inches of a class grid whose images are `dots` wide or high."""
    _check_images(images)
    if len(images) % len(classes) != 0:
        raise ValueError(
            f"images must be as many for each of the {len(classes)} classes; got {len(images)}"
        )
    height, width = images.shape[2:]
    inches = dots / max(height, width) / 100  # per pixel; whole dots, so that pixels look sharp
    columns = len(images) // len(classes)
    return (2 + columns * (width + 2)) * inches, (2 + len(classes) * (height + 2)) * inches


def _add_grid(figure, images, classes, dots, left=0, bottom=0, name_width=20):
    """Add a class grid to the figure, `left` and `bottom` inches from its corner."""
    width, height = _grid_size(images, classes, dots)
    over_x, over_y = figure.get_size_inches()
    axes = figure.add_axes((left / over_x, bottom / over_y, width / over_x, height / over_y))
    _draw_grid(axes, images, len(images) // len(classes))
    image_height = images.shape[2]
    places = [2 + image_height / 2 + row * (image_height + 2) for row in range(len(classes))]
    names, style = _plain_text(classes, name_width)
    axes.set_yticks(places, names, **style)  # outside the figure; saving it makes room for them
    return axes


def _plain_text(names, width=20, lines=2):
    """Return names as a figure has room for them, and the properties that set them as they are.

    A $ is a $, and not the start of a formula. Characters that the usual font lacks come from an
    installed font that has them; where none has, they become U+FFFD, with one warning.
    """
    names = [_cut(str(name), width, lines) for name in names]
    usual = get_font(findfont(FontProperties()))
    fonts = {
        character: _installed_font(character)
        for character in sorted({*"".join(names)} - {"\n"})
        if not usual.get_char_index(ord(character))
    }
    unknown = [character for character, font in fonts.items() if font is None]
    if unknown:
        named = [name for name in names if not {*name}.isdisjoint(unknown)]
        _warn_once(
            f"no installed font has the characters {' '.join(unknown)} of {', '.join(named)}; the "
            "figures have \N{REPLACEMENT CHARACTER} there; fonts such as Noto's have them"
        )
        replaced = str.maketrans(dict.fromkeys(unknown, "\N{REPLACEMENT CHARACTER}"))
        names = [name.translate(replaced) for name in names]
    families = [*rcParams["font.family"], *{font: None for font in fonts.values() if font}]
    return names, {"parse_math": False, "fontfamily": families}


@functools.cache
def _warn_once(message):  # and not with each epoch's figure
    warnings.warn(message, stacklevel=4)


def _cut(name, width, count):
    lines = [part for line in name.splitlines() for part in textwrap.wrap(line, width) or [""]]
    if len(lines) > count:
        lines[count - 1 :] = [lines[count - 1][: width - 1] + "…"]
    return "\n".join(lines)


@functools.cache
def _installed_font(character):
    """Return the family of an installed font that has the character, sans-serif first, or None."""
    for font in sorted(fontManager.ttflist, key=lambda font: "Sans" not in font.name):
        with contextlib.suppress(OSError, RuntimeError):  # a font file that is gone or damaged
            has = get_font(font.fname).get_char_index(ord(character))
            if has and "Last Resort" not in font.name:  # which has a box for every character
                return font.name
    return None


def _plot_loss(axes, x, values, network, style):
    """Plot the loss of "D" or "G", and what it is when D only guesses."""
    colour, marker, label, guess = {
        "D": (COLOUR_D, "o-", "2 ln 2", 2 * math.log(2)),
        "G": (COLOUR_G, "s-", "ln 2", math.log(2)),
    }[network]
    axes.plot(x, values, marker, color=colour, label=f"loss of {network}", **style)
    axes.axhline(guess, color=colour, linestyle=":", label=f"D guesses: {label}")
    axes.set(ylabel="loss (nats)", ylim=(0, None))


def _plot_probabilities(axes, x, values, style):
    axes.plot(x, values["d_real"], "o-", color=COLOUR_D, label="D(x), real images", **style)
    axes.plot(x, values["d_fake"], "s-", color=COLOUR_G, label="D(G(z)), generated", **style)
    axes.axhline(0.5, color="grey", linestyle=":", label="D guesses: 1/2")
    axes.set(ylabel="mean probability of being real", ylim=(-0.03, 1.03))


def _plot_dashed(losses, probabilities, stats):
    steps, means = _means_of_50(stats)
    for axes, name, colour in (
        (losses, "loss_d", COLOUR_D),
        (losses, "loss_g", COLOUR_G),
        (probabilities, "d_real", COLOUR_D),
        (probabilities, "d_fake", COLOUR_G),
    ):
        axes.plot(steps, means[name], color=colour, linestyle="--", linewidth=1)


def _means_of_50(stats):
    """Return the middle step of each 50 steps, and the means of the four statistics there."""
    chunks = stats.cpu().split(50)
    means = torch.stack([chunk.mean(dim=0) for chunk in chunks])
    middles = [50 * i + len(chunk) / 2 for i, chunk in enumerate(chunks)]
    return middles, dict(zip(STATS, means.T.tolist(), strict=True))


def _draw_grid(axes, images, columns):
    tiled = make_grid(images.detach().cpu(), nrow=columns, padding=2, pad_value=1)
    rgb = ((tiled + 1) / 2).clamp(0, 1).permute(1, 2, 0)  # (height, width, 3)
    axes.imshow(rgb.numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)

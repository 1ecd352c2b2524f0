"""The diagrams of the notebooks: run `python notebooks/images/diagrams.py` to draw them again.

Each function returns one diagram; its places and sizes are in inches, y downwards from the top.
All are as wide as a page of the book shows them, and legible on a phone.
"""

import functools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import cgan_utils as cg

WIDTH, DPI, SIZE = (5.5, 200, 10.5)  # inches, pixels per inch, points of the smallest text

# The colours of all figures (Okabe & Ito 2008) for D, G and real images, and greys; paler ones
# fill boxes, darker ones are for text.
D, G, REAL, GREY, PALE_GREY, DARK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#767676",
    "#CCCCCC",
    "#222222",
)
PALE = {D: "#DCEBF5", G: "#FBE7DB", REAL: "#DDF2EB", GREY: "#F1F1F1"}
DARKER = {D: "#005C91", G: "#A84A00", REAL: "#00694C"}
DASHES = (0, (3, 1.6))  # of the lines that a gradient takes


def canvas(height):
    """Return an empty figure and its axes, which have inches as unit and no visible parts."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def write(axes, x, y, text, size=SIZE, ha="center", va="center", color=DARK, **style):
    axes.text(x, y, text, fontsize=size, ha=ha, va=va, color=color, **style)


def box(axes, x, y, width, height, text, color=GREY, line=1.2, **style):
    """Draw a rounded box around its middle (x, y), with the text in it."""
    corner = x - width / 2, y - height / 2
    rounded = "round,pad=0,rounding_size=0.07"
    axes.add_patch(
        FancyBboxPatch(
            corner, width, height, rounded, facecolor=PALE[color], edgecolor=color, linewidth=line
        )
    )
    write(axes, x, y, text, **style)


def arrow(axes, start, end, color=DARK, dashed=False):
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0}
    style |= {"color": color, "linewidth": 1.4, "linestyle": DASHES if dashed else "-"}
    axes.add_patch(FancyArrowPatch(start, end, **style))


def block(axes, x, y, width, height, color, **style):
    """Draw a part of a matrix or a vector around its middle (x, y)."""
    corner = x - width / 2, y - height / 2
    style |= {"facecolor": PALE[color], "edgecolor": color}
    axes.add_patch(Rectangle(corner, width, height, **style))


def image(axes, x, y, width, pixels):
    """Draw an image, float (1, 28, 28) in [-1, 1], around its middle (x, y)."""
    extent = (x - width / 2, x + width / 2, y + width / 2, y - width / 2)
    axes.imshow(pixels[0].numpy(), "gray", vmin=-1, vmax=1, extent=extent, interpolation="nearest")


@functools.cache
def sandals():
    """Return a real sandal, and three that the tuned generator generates: (1, 28, 28) each."""
    data = cg.load_fashion_mnist("train")
    real = cg.normalize(data.images[data.labels == data.classes.index("Sandal")][6])
    return real, *cg.sample(cg.load_pretrained("tuned"), ["Sandal"] * 40, seed=0)[[0, 13, 26]]


def classifier_and_generator():
    """Notebook 01: from an image to its name, and from a name to images."""
    real, *generated = sandals()
    figure, axes = canvas(5.3)
    write(axes, 0.2, 0.32, "A classifier", 13, ha="left", weight="bold")
    write(axes, 1.43, 0.32, "(discriminative)", 12, ha="left")
    image(axes, 0.75, 1.15, 1.1, real)
    arrow(axes, (1.4, 1.15), (1.95, 1.15))
    box(axes, 2.55, 1.15, 1.1, 0.8, "network", size=12)
    arrow(axes, (3.2, 1.15), (3.75, 1.15))
    box(axes, 4.5, 1.15, 1.3, 0.5, "“Sandal”", size=13)
    write(axes, 4.5, 1.6, "one right answer")

    axes.plot((0.2, 5.3), (2.0, 2.0), color=PALE_GREY, linewidth=1)
    write(axes, 0.2, 2.32, "A generator", 13, ha="left", weight="bold")
    write(axes, 1.54, 2.32, "(generative)", 12, ha="left")
    box(axes, 0.85, 3.1, 1.3, 0.5, "“Sandal”", size=13)
    box(axes, 0.85, 3.9, 1.3, 0.6, "random\nnumbers $z$", size=11)
    arrow(axes, (1.55, 3.15), (1.95, 3.35))
    arrow(axes, (1.55, 3.85), (1.95, 3.65))
    box(axes, 2.55, 3.5, 1.1, 0.8, "network", G, size=12)
    for y, pixels in zip((2.65, 3.5, 4.35), generated, strict=True):
        arrow(axes, (3.2, 3.5 + (y - 3.5) / 4), (4.0, y))
        image(axes, 4.5, y, 0.75, pixels)
    write(axes, 5.3, 5.05, "many right answers,\na new one for every $z$", ha="right")
    return figure


def two_networks():
    """Notebook 01: G generates, D compares with real images, and who learns from what."""
    real, generated, *_ = sandals()
    figure, axes = canvas(4.15)
    box(axes, 0.75, 2.55, 1.1, 0.5, "label\n“Sandal”")
    box(axes, 0.75, 3.3, 1.1, 0.5, "random\nnumbers $z$")
    arrow(axes, (1.3, 2.62), (1.62, 2.77))
    arrow(axes, (1.3, 3.22), (1.62, 3.07))
    box(axes, 1.97, 2.92, 0.7, 0.8, "G", G, size=15, weight="bold")
    arrow(axes, (2.32, 2.92), (2.62, 2.92))
    image(axes, 3.07, 2.92, 0.9, generated)
    write(axes, 3.07, 2.28, "generated,\nlabel “Sandal”")
    image(axes, 3.07, 1.1, 0.9, real)
    write(axes, 3.07, 0.46, "real,\nlabel “Sandal”")
    arrow(axes, (3.52, 1.2), (3.9, 1.6))
    arrow(axes, (3.52, 2.65), (3.9, 2.25))
    box(axes, 4.25, 1.92, 0.7, 0.8, "D", D, size=15, weight="bold")
    write(axes, 4.82, 0.95, "real or\ngenerated?", weight="bold")
    arrow(axes, (4.4, 1.52), (4.6, 1.2))
    axes.plot((4.95, 4.95), (1.2, 1.92), color=DARK, linestyle=DASHES)
    arrow(axes, (4.95, 1.92), (4.6, 1.92), dashed=True)
    write(axes, 4.68, 2.12, "the truth\nteaches D", ha="left", va="top")
    axes.plot((4.25, 4.25, 1.97), (2.32, 3.75, 3.75), color=DARK, linestyle=DASHES)
    arrow(axes, (1.97, 3.75), (1.97, 3.32), dashed=True)
    write(axes, 3.1, 3.93, "D's answer teaches G")
    return figure


def bias_of_class():
    """Notebook 02: the first layer's matrix, cut into the columns of z and of the label."""
    figure, axes = canvas(2.75)
    for x, width, color, name, shape in (
        (1.3, 2.0, GREY, "$W_z$", "256 x 100"),
        (2.6, 0.6, G, "$W_e$", "256 x 10"),
    ):
        block(axes, x, 1.15, width, 1.2, color)
        write(axes, x, 1.05, name, 15)
        write(axes, x, 0.32, shape, color=DARKER.get(color, DARK))
    for y, height, color, name in ((0.95, 0.8, GREY, "$z$"), (1.55, 0.4, G, "$e_y$")):
        block(axes, 3.525, y, 0.35, height, color)
        write(axes, 3.52, y, name, 15)
    write(axes, 3.12, 1.15, r"$\times$", 15)
    write(axes, 3.95, 1.15, "+ $b$", 13, ha="left")
    write(axes, 0.55, 2.25, "=   $W_z\\, z$   +", 15, ha="left")
    box(axes, 2.85, 2.25, 1.45, 0.42, "$W_e\\, e_y + b$", G, line=2.6, size=15)
    write(axes, 3.7, 2.25, "a bias that only\nthe label decides", ha="left")
    return figure


def architecture():
    """Notebook 02: both networks, with the shape of every tensor."""
    figure, axes = canvas(7.05)
    axes.plot((2.75, 2.75), (0.2, 6.3), color=PALE_GREY, linewidth=1)
    write(axes, 1.4, 0.3, "Generator G", 13, weight="bold", color=DARKER[G])
    box(axes, 0.78, 0.8, 1.16, 0.5, "noise $z$\n(N, 100)")
    arrow(axes, (0.78, 1.05), (0.78, 2.22))
    label_and_layers(axes, 1.4, G, "G", 110, 784, "ReLU", ", Tanh", "reshape")
    box(axes, 1.4, 6.07, 2.4, 0.5, "image in [-1, 1]\n(N, 1, 28, 28)")

    write(axes, 4.1, 0.3, "Discriminator D", 13, weight="bold", color=DARKER[D])
    box(axes, 3.48, 0.8, 1.16, 0.5, "image\n(N, 1, 28, 28)")
    arrow(axes, (3.48, 1.05), (3.48, 1.28))
    box(axes, 3.48, 1.53, 1.16, 0.5, "flatten", D)
    arrow(axes, (3.48, 1.78), (3.48, 2.22))
    write(axes, 3.55, 1.97, "(N, 784)", ha="left")
    label_and_layers(axes, 4.1, D, "D", 794, 1, "LeakyReLU", "", "squeeze")
    box(axes, 4.1, 6.07, 2.4, 0.5, "logit\n(N,)")
    note = "N images in a batch. The two embeddings are different tables,\n"
    write(axes, 2.75, 6.7, note + "each with 10 elements for each of the 10 classes.")
    return figure


def label_and_layers(axes, x, color, name, inputs, outputs, activation, last, end):
    """Draw, around x, what both networks have: the label's way in and three linear layers."""
    box(axes, x + 0.62, 0.8, 1.16, 0.5, "label $y$\n(N,)")
    arrow(axes, (x + 0.62, 1.05), (x + 0.62, 1.28), color=color)
    box(axes, x + 0.62, 1.53, 1.16, 0.5, f"Embedding\nof {name}, 10 x 10", color, line=2.6)
    arrow(axes, (x + 0.62, 1.78), (x + 0.62, 2.22), color=color)
    write(axes, x + 0.69, 1.97, "(N, 10)", ha="left")
    steps = {
        "concatenate": f"(N, {inputs})",
        f"Linear {inputs} → 256, {activation}": "(N, 256)",
        f"Linear 256 → 256, {activation}": "(N, 256)",
        f"Linear 256 → {outputs}{last}": f"(N, {outputs})",
        end: "",
    }
    for i, (step, shape) in enumerate(steps.items()):
        y = 2.4 + 0.72 * i
        box(axes, x, y, 2.4, 0.36, step, color)
        arrow(axes, (x, y + 0.18), (x, y + 0.54))
        write(axes, x + 0.08, y + 0.33, shape, ha="left")


def two_updates():
    """Notebook 03: what each update changes, and how far its gradient runs back."""
    figure, axes = canvas(5.25)
    write(axes, 0.14, 0.3, "Update D", 13, ha="left", weight="bold", color=DARKER[D])
    write(axes, 1.22, 0.31, "D learns to tell real from generated", 11, ha="left")
    arrow(axes, (0.14, 0.87), (0.5, 0.87))
    write(axes, 0.58, 0.87, "values", ha="left")
    arrow(axes, (0.5, 1.17), (0.14, 1.17), dashed=True)
    write(axes, 0.58, 1.17, "gradient", ha="left")
    box(axes, 2.38, 1.05, 0.9, 0.7, "real\nimages,\nlabel $y$", REAL)
    arrow(axes, (2.83, 0.95), (3.16, 0.95))
    generate(axes, 2.25, changes=False)
    network(axes, 3.53, 1.65, 1.96, "D", D, changes=True)
    loss(axes, 1.05, "loss for\ntarget 1:\nreal")
    loss(axes, 2.25, "loss for\ntarget 0:\ngenerated")
    axes.plot((3.16, 3.03), (2.4, 2.4), color=DARK, linestyle=DASHES)
    for x in (2.95, 3.01):  # the cut
        axes.plot((x - 0.03, x + 0.03), (2.52, 2.28), color=DARK, linewidth=2.4)
    write(axes, 2.99, 2.86, "detach: no gradient passes", weight="bold")

    axes.plot((0.14, 5.36), (3.17, 3.17), color=PALE_GREY, linewidth=1)
    write(axes, 0.14, 3.47, "Update G", 13, ha="left", weight="bold", color=DARKER[G])
    write(axes, 1.22, 3.48, "G learns to generate images that D takes for real", 11, ha="left")
    generate(axes, 4.27, changes=True)
    network(axes, 3.53, 4.27, 0.76, "D", D, changes=False)
    loss(axes, 4.27, "loss for\ntarget 1:\nreal")
    arrow(axes, (3.16, 4.42), (2.83, 4.42), dashed=True)
    arrow(axes, (1.93, 4.42), (1.68, 4.42), dashed=True)
    write(axes, 3.53, 4.89, "passes the\ngradient on")
    return figure


def generate(axes, y, changes):
    """Draw, at the height y of `two_updates`, how G generates images for D."""
    box(axes, 0.43, y, 0.66, 0.7, "noise $z$\nlabel $y'$")
    arrow(axes, (0.76, y - 0.1), (0.94, y - 0.1))
    network(axes, 1.31, y, 0.76, "G", G, changes)
    arrow(axes, (1.68, y - 0.1), (1.93, y - 0.1))
    box(axes, 2.38, y, 0.9, 0.7, "generated\nimages,\nlabel $y'$", G)
    arrow(axes, (2.83, y - 0.1), (3.16, y - 0.1))


def network(axes, x, y, height, name, color, changes):
    """Draw a network that the update changes, with a thick border, or leaves as it is."""
    box(axes, x, y, 0.74, height, "", color, line=3 if changes else 1)
    write(axes, x, y - 0.12, name, 15, weight="bold")
    write(axes, x, y + 0.17, "changes" if changes else "stays")


def loss(axes, y, text):
    """Draw a logit's way from D to its loss, and the gradient's way back."""
    arrow(axes, (3.9, y - 0.1), (4.44, y - 0.1))
    write(axes, 4.16, y - 0.23, "logit")
    arrow(axes, (4.44, y + 0.15), (3.9, y + 0.15), dashed=True)
    box(axes, 4.91, y, 0.94, 0.7, text)


def line_and_arc():
    """Notebook 04: two ways from one noise vector to another."""
    figure, axes = canvas(4.2)
    zero, radius = np.array([2.75, 3.75]), 3.0
    angle = np.radians(np.linspace(135, 45, 81))
    arc = zero + radius * np.stack([np.cos(angle), -np.sin(angle)], axis=1)
    line = np.linspace(arc[0], arc[-1], 81)
    for end in (arc[0], arc[-1]):
        axes.plot(*zip(zero, end, strict=True), "--", color=GREY, linewidth=1.4)
    axes.plot(*zip(zero, line[40], strict=True), "--", color=D, linewidth=1.4)
    axes.plot(*line.T, "s-", color=D, linewidth=1.8, markersize=7, markevery=10)
    axes.plot(*arc.T, "o-", color=G, linewidth=1.8, markersize=8, markevery=10)
    for point in (zero, arc[0], arc[-1]):
        axes.plot(*point, "o", color=DARK, markersize=11)
    write(axes, 0.36, 1.6, "$z_a$", 16)
    write(axes, 5.14, 1.6, "$z_b$", 16)
    write(axes, 2.95, 3.85, "0", 13)
    write(axes, 2.75, 0.45, "arc: the same length all the way", 11, color=DARKER[G], weight="bold")
    write(axes, 2.75, 1.35, "line: shorter in the middle", 11, color=DARKER[D], weight="bold")
    write(axes, 1.25, 2.7, "length\nabout 10", ha="right")
    write(axes, 4.25, 2.7, "length\nabout 10", ha="left")
    write(axes, 2.85, 2.35, "length\nabout 7", ha="left")
    return figure


def label_blend():
    """Notebook 04: a point between two labels."""
    figure, axes = canvas(3.75)
    box(axes, 2.75, 1.52, 5.2, 2.7, "")
    write(axes, 0.35, 0.42, "Embedding space of G", 12, ha="left", weight="bold")
    write(axes, 2.6, 0.42, "(10 dimensions, 2 shown)", ha="left")
    sneaker, boot, bag = np.array([[0.95, 2.35], [4.2, 1.05], [4.6, 2.35]])
    steps = np.linspace(sneaker, boot, 11)
    axes.plot(*steps.T, ".-", color=GREY, linewidth=1.4, markersize=7)
    axes.plot(*zip(sneaker, boot, bag, strict=True), "o", color=G, markersize=12)
    write(axes, sneaker[0], sneaker[1] + 0.25, "Sneaker", 11, weight="bold")
    write(axes, boot[0], boot[1] - 0.25, "Ankle boot", 11, weight="bold")
    write(axes, bag[0], bag[1] + 0.25, "Bag", 11, weight="bold")
    axes.plot(*steps[3], "o", color="white", markeredgecolor=G, markeredgewidth=2.4, markersize=12)
    write(axes, 2.05, 2.3, "70% Sneaker\n+ 30% Ankle boot", 11, ha="left")
    note = "Each label is one point, a row of the table.\n"
    write(axes, 2.75, 3.26, note + "Nothing was trained between the points.", 11)
    return figure


def projection():
    """Notebook 06: D's logit is a sum of two inner products with the same features."""
    figure, axes = canvas(3.3)
    box(axes, 0.62, 1.15, 1.0, 0.5, "image $x$", size=11)
    box(axes, 0.62, 2.5, 1.0, 0.5, "label $y$", size=11)
    box(axes, 2.0, 1.15, 1.1, 0.75, "hidden\nlayers", D, size=11)
    box(axes, 2.0, 2.5, 1.1, 0.75, "Embedding\nof D", D, line=2.6, size=11)
    arrow(axes, (1.12, 1.15), (1.45, 1.15))
    arrow(axes, (1.12, 2.5), (1.45, 2.5))
    block(axes, 2.98, 1.15, 0.22, 1.0, D)
    write(axes, 2.98, 0.45, "$h(x)$", 12, color=DARKER[D])
    arrow(axes, (2.55, 1.15), (2.86, 1.15))
    block(axes, 2.98, 2.5, 0.22, 1.0, D)
    write(axes, 2.98, 3.13, "$v_y$", 15, color=DARKER[D])
    arrow(axes, (2.55, 2.5), (2.86, 2.5), D)
    arrow(axes, (3.1, 1.0), (3.5, 0.82))
    arrow(axes, (3.1, 1.4), (3.5, 2.1))
    arrow(axes, (3.1, 2.5), (3.5, 2.38), D)
    box(axes, 4.05, 0.8, 1.1, 0.5, "$w^T h(x) + b$", D, size=11)
    write(axes, 4.05, 0.38, "is it real?", 11)
    box(axes, 4.05, 2.25, 1.1, 0.5, "$v_y^T h(x)$", D, line=2.6, size=15)
    write(axes, 4.05, 2.72, "is it a $y$?", 11)
    arrow(axes, (4.15, 1.05), (4.5, 1.38))
    arrow(axes, (4.15, 2.0), (4.5, 1.67))
    box(axes, 4.95, 1.52, 0.9, 0.56, "logit:\nthe sum", size=11)
    return figure


def patch_decoder():
    """Notebook 06: one small network turns the features of each place into a patch."""
    figure, axes = canvas(3.55)
    cell, left, top = 0.19, 0.15, 1.12
    for row in range(7):
        for column in range(7):
            x, y = left + cell * (column + 0.5), top + cell * (row + 0.5)
            color = G if (row, column) in {(2, 2), (2, 3)} else GREY
            block(axes, x, y, cell, cell, color)
    write(axes, 0.82, 0.62, "7 x 7 places,\n24 features each")
    write(axes, 0.82, 2.85, "from the last\nhidden layer,\nat once")
    box(axes, 2.55, 1.78, 1.3, 1.0, "one small\nnetwork,\n24 → 64 → 64", G, line=2.6, size=11)
    write(axes, 2.55, 0.62, "shared by\nall places", weight="bold")
    arrow(axes, (0.64, 1.6), (1.88, 1.7), G)
    pixel, left, top = 0.06, 3.72, 0.95
    block(axes, left + 14 * pixel, top + 14 * pixel, 28 * pixel, 28 * pixel, GREY)
    for column, dashes in ((2, "-"), (3, DASHES)):
        x, y = left + (4 * column + 2) * pixel, top + (4 * 2 + 2) * pixel
        style = {"alpha": 0.8, "linewidth": 1.8, "linestyle": dashes}
        block(axes, x, y, 8 * pixel, 8 * pixel, G, **style)
    arrow(axes, (3.2, 1.72), (4.05, 1.58), G)
    write(axes, 4.56, 0.62, "28 x 28 pixels")
    write(axes, 4.56, 3.02, "patches of 8 x 8,\n4 pixels apart;\ntheir overlaps add up")
    return figure


def gan_test_and_gan_train():
    """Notebook 05: which images train the classifier, and of which it says the class."""
    real, generated, *_ = sandals()
    figure, axes = canvas(4.2)
    of_real, of_generated = (real, "real images"), (generated, "generated images")
    for top, name, question, train, test in (
        (0.0, "GAN-test", "are generated images recognised?", of_real, of_generated),
        (2.1, "GAN-train", "what can be learned from them?", of_generated, of_real),
    ):
        network = "evaluation" if name == "GAN-test" else name
        write(axes, 0.2, top + 0.3, name, 13, ha="left", weight="bold")
        write(axes, 1.3, top + 0.31, question, 11, ha="left")
        for x, (pixels, kind) in ((0.9, train), (4.6, test)):
            image(axes, x, top + 1.1, 0.9, pixels)
            write(axes, x, top + 1.72, kind)
        box(axes, 2.75, top + 1.1, 1.2, 0.7, f"{network}\nclassifier", size=11)
        arrow(axes, (1.4, top + 1.1), (2.1, top + 1.1))
        write(axes, 1.75, top + 0.92, "train")
        arrow(axes, (4.1, top + 1.1), (3.4, top + 1.1))
        write(axes, 3.75, top + 0.92, "test")
        write(axes, 2.75, top + 1.72, "share it gets right")
    axes.plot((0.2, 5.3), (2.1, 2.1), color=PALE_GREY, linewidth=1)
    return figure


def where_faults_strike():
    """Notebook 07: a training step and the sampling after it, with the number of each fault."""
    figure, axes = canvas(6.95)
    write(axes, 0.2, 0.3, "One training step", 13, ha="left", weight="bold")
    for y, text, color in (
        (0.95, "real\nimages", REAL),
        (1.85, "their\nlabels $y$", REAL),
        (2.75, "noise $z$", GREY),
        (3.4, "labels $y'$", GREY),
    ):
        box(axes, 0.75, y, 1.0, 0.46, text, color)
    box(axes, 2.2, 3.08, 0.7, 0.7, "G", G, size=15, weight="bold")
    box(axes, 3.2, 1.65, 0.7, 1.3, "D", D, size=15, weight="bold")
    for y, name, color in ((0.95, "D", D), (2.65, "G", G)):
        box(axes, 4.75, y, 0.98, 0.42, f"{name}'s loss", color)
        arrow(axes, (4.75, y + 0.21), (4.75, y + 0.59), dashed=True)
        box(axes, 4.75, y + 0.8, 0.98, 0.42, f"{name}'s update", color)
    arrow(axes, (1.25, 0.95), (2.85, 1.3))
    arrow(axes, (1.25, 1.85), (2.85, 1.75))
    arrow(axes, (1.25, 2.75), (1.85, 2.95))
    arrow(axes, (1.25, 3.4), (1.85, 3.2))
    arrow(axes, (2.4, 2.73), (2.95, 2.3))
    write(axes, 2.68, 2.98, "generated\nimages and\nlabels $y'$", ha="left", va="top")
    arrow(axes, (3.55, 1.65), (4.26, 0.98))
    arrow(axes, (3.55, 1.65), (4.26, 2.6))
    write(axes, 3.62, 0.95, "logits")
    axes.plot((0.2, 5.3), (4.15, 4.15), color=PALE_GREY, linewidth=1)
    write(axes, 0.2, 4.43, "Sampling", 13, ha="left", weight="bold")
    box(axes, 0.75, 4.95, 1.0, 0.46, "class name")
    box(axes, 2.25, 4.95, 0.8, 0.46, "label $y'$")
    box(axes, 3.55, 4.95, 0.7, 0.46, "G", G, size=15, weight="bold")
    box(axes, 4.84, 4.95, 0.8, 0.46, "images", G)
    for start, end in ((1.25, 1.85), (2.65, 3.2), (3.9, 4.44)):
        arrow(axes, (start, 4.95), (end, 4.95))
    faults = {
        "D gets no label": [(2.05, 1.8), (2.68, 2.51)],
        "shuffled labels": [(0.27, 1.6)],
        "the wrong list of names": [(1.52, 4.95)],
        "the wrong range": [(2.05, 1.125)],
        "100 images": [(0.27, 0.7)],
        "one backward for both": [(4.75, 1.33), (4.75, 3.03)],
        "sigmoid twice": [(3.62, 1.65)],
        "the learning rate x 50": [(4.28, 1.95), (4.28, 3.65)],
        "D is too slow": [(5.22, 1.95)],
        "a seed inside the loop": [(0.27, 2.5), (0.27, 3.65)],
        "no eval()": [(3.2, 4.7)],
    }
    for number, (name, places) in enumerate(faults.items(), start=1):
        column, row = divmod(number - 1, 6)
        key = 0.35 + 2.6 * column, 5.45 + 0.26 * row
        write(axes, key[0] + 0.2, key[1], name, ha="left")
        for x, y in (key, *places):
            disc(axes, x, y, number)
    return figure


def disc(axes, x, y, number):
    """Draw the number of a fault."""
    axes.plot(x, y, "o", color=DARK, markersize=15)
    write(axes, x, y, str(number), color="white", weight="bold", va="center_baseline")


def timelines():
    """Notebook 08: when a step computes on a CPU, and when its operators are started."""
    figure, axes = canvas(2.5)
    start = timeline_legend(axes)
    work = [(width, D) for width in (0.55, 0.12, 0.12, 0.4, 0.12, 0.6, 0.12)]
    write(axes, 0.2, 0.82, "Eager", 12, ha="left", weight="bold")
    timeline(axes, 0.75, 1.15, "CPU", [part for each in work for part in (start, each)])
    write(axes, 0.2, 1.67, "Compiled", 12, ha="left", weight="bold")
    timeline(axes, 0.75, 2.0, "CPU", [start, *work])
    time_arrow(axes, 2.33)
    return figure


def timelines_on_a_gpu():
    """Notebook 08: when a step computes on a GPU, and when its operators are started."""
    figure, axes = canvas(3.1)
    start = timeline_legend(axes)
    short, pause = (0.05, D), (0.23, None)
    write(axes, 0.2, 0.82, "Eager", 12, ha="left", weight="bold")
    timeline(axes, 0.75, 1.15, "CPU", [start] * 15)
    timeline(axes, 1.03, 1.48, "GPU", [short, pause] * 15)
    write(axes, 0.2, 1.97, "CUDA graph", 12, ha="left", weight="bold")
    timeline(axes, 0.75, 2.3, "CPU", [start])
    timeline(axes, 1.03, 2.63, "GPU", [short] * 15)
    time_arrow(axes, 2.93)
    return figure


def late_thread():
    """Notebook 08: two threads with a barrier after each operator, one of them late."""
    figure, axes = canvas(3.1)
    for x, color, text in ((0.2, D, "computes"), (1.5, GREY, "waits"), (2.5, G, "neighbour")):
        block(axes, x + 0.14, 0.3, 0.28, 0.24, color)
        write(axes, x + 0.38, 0.3, text, ha="left")
    axes.plot([3.85, 3.85], [0.15, 0.45], color=DARK, linestyle=DASHES)
    write(axes, 3.95, 0.3, "end of an operator", ha="left")
    short, turn = (0.2, D), 1.2
    write(axes, 0.2, 0.82, "Both cores free", 12, ha="left", weight="bold")
    timeline(axes, 1.1, 1.15, "core 1", [short] * 8)
    timeline(axes, 1.1, 1.48, "core 2", [short] * 8)
    barriers(axes, [1.1 + 0.2 * n for n in range(1, 9)], 1.315)
    write(axes, 0.2, 1.97, "A neighbour on one core", 12, ha="left", weight="bold")
    timeline(axes, 1.1, 2.3, "core 1", [*[short] * 4, (turn, GREY)] * 2)
    timeline(axes, 1.1, 2.63, "core 2", [*[short] * 3, (turn, G), short] * 2)
    barriers(axes, [1.3, 1.5, 1.7, 3.1, 3.3, 3.5, 3.7, 5.1], 2.465)
    time_arrow(axes, 2.93)
    return figure


def barriers(axes, places, y):
    """Draw the ends that two timelines around y have in common."""
    for x in places:
        axes.plot([x, x], [y - 0.36, y + 0.36], color=DARK, linestyle=DASHES)


def timeline_legend(axes):
    """Say what the two colours mean; return how the start of an operator is drawn."""
    start = (0.28, GREY)
    legend = {0.2: (start, "a start by Python"), 2.75: ((0.28, D), "an operator computes")}
    for x, (part, text) in legend.items():
        timeline(axes, x, 0.3, "", [part])
        write(axes, x + 0.38, 0.3, text, ha="left")
    return start


def time_arrow(axes, y):
    arrow(axes, (3.2, y), (5.2, y))
    write(axes, 3.1, y, "time, not to scale", ha="right")


def timeline(axes, x, y, name, parts):
    """Draw (width, colour) after each other, from x on; without a colour, nothing happens."""
    write(axes, 0.2, y, name, ha="left")
    for width, color in parts:
        if color is not None:
            block(axes, x + width / 2, y, width, 0.24, color)
        x += width


def all_reduce():
    """Notebook 08: what two processes compute apart, and what they exchange."""
    figure, axes = canvas(3.3)
    for y, name, out in ((1.05, "process 1", -1), (2.2, "process 2", 1)):  # outwards: up or down
        write(axes, 0.2, y - 0.5, name, 12, ha="left", weight="bold")
        box(axes, 0.7, y, 1.0, 0.6, "its own\nbatch")
        arrow(axes, (1.2, y), (1.5, y))
        box(axes, 2.1, y, 1.2, 0.6, "G and D, the\nsame in both")
        arrow(axes, (2.7, y), (3.0, y))
        box(axes, 3.5, y, 1.0, 0.6, "its own\ngradients")
        arrow(axes, (4.0, y - 0.15 * out), (4.38, 1.625 + 0.25 * out))
        way = y + 0.57 * out
        axes.plot((4.85, 4.85, 2.1), (1.625 + 0.45 * out, way, way), color=DARK, linestyle=DASHES)
        arrow(axes, (2.1, way), (2.1, y + 0.3 * out), dashed=True)
        write(axes, 3.5, way + 0.2 * out, "the same update")
    box(axes, 4.85, 1.625, 0.9, 0.9, "all-reduce:\nthe mean\nof both", REAL)
    return figure


def which_fault():
    """Notebook 07: what to ask first, and the faults that each "no" leaves."""
    questions = {
        "Do the training labels\nfit their images?": {2: "shuffled labels"},
        "Do the columns differ?\n(diversity)": {
            8: "D(G(z)) 0, G's loss huge",
            9: "D(G(z)) 1/2 or more",
        },
        "Does every row show\nshapes on black?": {
            4: "clear shapes on grey",
            6: "pure noise, D(x) near 1",
            7: "haze, G's loss at most ln 2",
            10: "haze, columns decide",
        },
        "Does each row show\nits class? (GAN-test)": {
            1: "rows of wrong kinds",
            3: "whole rows exchanged",
            10: "columns decide",
            11: "the same, until eval()",
        },
        "Does D treat held-out\nimages like training ones?": {5: "100 images"},
    }
    figure, axes = canvas(6.8)
    y = 0.5
    for question, faults in questions.items():
        box(axes, 1.25, y, 2.1, 0.54, question)
        arrow(axes, (2.3, y), (2.9, y))
        write(axes, 2.56, y - 0.14, "no")
        for row, (number, text) in enumerate(faults.items()):
            place = y + 0.26 * (row - (len(faults) - 1) / 2)
            disc(axes, 3.15, place, number)
            write(axes, 3.36, place, text, ha="left")
        following = y + 1.22
        arrow(axes, (1.25, y + 0.27), (1.25, following - 0.27))
        write(axes, 1.47, y + 0.6, "yes")
        y = following
    write(axes, 1.25, y - 0.12, "no fault of these eleven")
    return figure


def p_g_matching():
    """Notebook 06: what G generates if D also rejects real images with a wrong label."""
    figure, axes = canvas(3.5)
    x = np.linspace(0.2, 5.3, 511)
    p, p_w = (
        np.exp(-(((x - middle) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
        for middle, width in ((2.0, 0.55), (3.4, 0.7))
    )
    scales = np.linspace(1, 2, 1001)[:, None]
    areas = np.maximum(0, scales * p - p_w).sum(axis=1) * (x[1] - x[0])
    p_g = np.maximum(0, np.interp(1, areas, scales[:, 0]) * p - p_w)  # with area 1
    for bottom, curves in ((1.6, ((p, REAL), (p_w, GREY))), (3.3, ((p_g, G),))):
        axes.plot((0.2, 5.3), (bottom, bottom), color=DARK, linewidth=1)
        for curve, color in curves:
            density(axes, x, bottom - 1.5 * curve, bottom, color)
    axes.plot(x, 3.3 - 1.5 * p, color=REAL, linewidth=1.4, linestyle=DASHES)
    write(axes, 2.0, 0.22, "$p$: real images of the class", 15)
    write(axes, 4.15, 0.5, "$p_w$: other classes", 15)
    write(axes, 4.05, 2.3, r"$p_G = \max(0,\ c\,p - p_w)$", 15)
    write(axes, 4.05, 2.65, "dashed: $p$", 12)
    return figure


def density(axes, x, y, floor, color):
    """Draw the curve of a density above its floor."""
    axes.fill_between(x, floor, y, color=PALE[color], alpha=0.7, linewidth=0)
    axes.plot(x, y, color=color, linewidth=2, zorder=3)


def frechet():
    """Notebook 05: the Fréchet distance of two Gaussians, one moved or twice as wide."""
    figure, axes = canvas(3.75)
    unit, middle = 0.3, 2.05  # inches: a standard deviation of real points, and where their mean is
    for floor, title, mean, spread, square in (
        (1.75, "Moved by 3", 3, 1, "3^2 = 9"),
        (3.5, "Twice as wide", 0, 2, "(2 - 1)^2 = 1"),
    ):
        write(axes, 0.2, floor - 1.43, title, 13, ha="left", weight="bold")
        for color, mu, sigma in ((REAL, 0, 1), (G, mean, spread)):
            x = np.linspace(mu - 3 * sigma, mu + 3 * sigma, 121)
            y = floor - np.exp(-(((x - mu) / sigma) ** 2) / 2) / sigma
            density(axes, middle + unit * x, y, floor, color)
        axes.plot((0.2, 3.9), (floor, floor), color=DARK, linewidth=1)
        write(axes, 4.7, floor - 0.5, f"$d^2 = {square}$", 12)
    arrow(axes, (middle, 0.65), (middle + 3 * unit, 0.65))
    write(axes, middle + 1.5 * unit, 0.5, "3")
    write(axes, middle - 0.4, 1.05, "real", 11, ha="right", color=DARKER[REAL])
    write(axes, middle + 3 * unit + 0.35, 1.05, "generated", 11, ha="left", color=DARKER[G])
    write(axes, middle + 0.4, 2.8, r"real, $\sigma = 1$", 11, ha="left", color=DARKER[REAL])
    write(axes, middle - 0.55, 2.85, r"generated, $\sigma = 2$", 11, ha="right", color=DARKER[G])
    return figure


DIAGRAMS = {
    draw.__name__: draw
    for draw in (
        two_networks,
        classifier_and_generator,
        architecture,
        bias_of_class,
        two_updates,
        line_and_arc,
        label_blend,
        projection,
        patch_decoder,
        gan_test_and_gan_train,
        where_faults_strike,
        timelines,
        timelines_on_a_gpu,
        late_thread,
        all_reduce,
        which_fault,
        p_g_matching,
        frechet,
    )
}


def save(figure, path):
    """Write a PNG that also holds the words of the diagram, and nothing that changes by run."""
    words = "\n".join(text.get_text() for text in figure.axes[0].texts if text.get_text())
    figure.savefig(path, metadata={"Software": None, "Description": words})


if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        save(draw(), Path(__file__).with_name(f"{name}.png"))

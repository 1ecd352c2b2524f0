"""Figures are read back: which values they show, where, and under which name."""

import gc
import inspect
import io
import warnings
import weakref

import matplotlib
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

import cgan_utils as cg
from cgan_utils import plotting

matplotlib.use("agg")
CLASSES = ("first", "second", "third")


@pytest.fixture
def displayed(monkeypatch):
    calls = []
    monkeypatch.setattr(plotting, "get_ipython", object)
    monkeypatch.setattr(plotting, "display", lambda data, **options: calls.append((data, options)))
    return calls


def cell(figure, row, column, size=8):
    """The grey values that the grid shows in one cell, on the scale 0..1."""
    (image,) = figure.axes[0].images
    top, left = 2 + row * (size + 2), 2 + column * (size + 2)
    return image.get_array()[top : top + size, left : left + size]


def test_class_grid_has_a_row_per_class_and_a_fixed_grey_scale():
    images = torch.linspace(-1, 0.4, 12)[:, None, None, None].expand(-1, 1, 8, 8)
    figure = cg.plot_class_grid(images, CLASSES, column_titles=["a", "b", "c", "d"])
    for row in range(3):
        for column in range(4):
            grey = (images[row * 4 + column, 0, 0, 0] + 1) / 2
            torch.testing.assert_close(
                torch.tensor(cell(figure, row, column)), grey.expand(8, 8, 3)
            )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "d"]
    for row, place in enumerate(axes.get_yticks()):  # each label stands at the middle of its row
        assert 2 + row * 10 < place < 2 + row * 10 + 8


def test_values_out_of_range_show_as_black_or_white_not_stretched():
    images = torch.tensor([-9.0, 0.0, 9.0])[:, None, None, None].expand(-1, 1, 8, 8)
    figure = cg.plot_class_grid(images, CLASSES)
    assert [cell(figure, row, 0).mean() for row in range(3)] == [0, 0.5, 1]


def test_colour_images_keep_their_colours():
    images = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 8, 8)
    figure = cg.plot_images(images, ["red"])
    (shown,) = figure.axes[0].images
    assert shown.get_array()[4, 4].tolist() == [1, 0, 0.5]


def test_images_stand_under_their_titles():
    images = torch.linspace(-1, 1, 10)[:, None, None, None].expand(-1, 1, 8, 8)
    figure = cg.plot_images(images, [f"no {i}" for i in range(10)], columns=4)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"no {i}" for i in range(10)]
    greys = [axes.images[0].get_array().mean() for axes in drawn]
    assert greys == pytest.approx(torch.linspace(0, 1, 10).tolist(), abs=1e-6)


def test_history_is_plotted_with_the_values_of_a_guessing_discriminator():
    history = {
        "loss_d": [1.0, 1.2],
        "loss_g": [0.9, 0.8],
        "d_real": [0.6, 0.5],
        "d_fake": [0.4, 0.5],
    }
    loss_d, loss_g, probabilities = cg.plot_history(history, every=25, unit="step").axes
    heights = {
        line.get_label(): list(line.get_ydata())
        for line in (*loss_d.lines, *loss_g.lines, *probabilities.lines)
    }
    assert heights["loss of D"] == [1.0, 1.2] and heights["loss of G"] == [0.9, 0.8]
    assert heights["D guesses: 2 ln 2"] == pytest.approx([1.386294, 1.386294])
    assert heights["D guesses: ln 2"] == pytest.approx([0.693147, 0.693147])
    assert heights["D(x), real images"] == [0.6, 0.5]
    assert heights["D(G(z)), generated"] == [0.4, 0.5]
    assert [len(axes.lines) for axes in (loss_d, loss_g, probabilities)] == [2, 2, 3]
    assert list(loss_d.lines[0].get_xdata()) == [25, 50]


def test_an_animation_plays_each_figure_once_and_shows_the_last_where_nothing_plays(displayed):
    greys = torch.tensor([-1.0, 0.0, 1.0])
    images = greys[:, None, None, None, None].expand(-1, 3, 1, 8, 8)
    figures = [cg.plot_class_grid(grid, CLASSES) for grid in images]
    plotting.show_animation(figures, "from black over grey to white", seconds=0.5)
    ((bundle, options),) = displayed
    assert options["metadata"]["image/png"]["alt"] == "from black over grey to white"
    animation = Image.open(io.BytesIO(bundle["image/png"]))
    assert animation.n_frames == 4 and animation.info["loop"] == 0

    def middle(frame):
        animation.seek(frame)
        image = animation.convert("L")
        return image.getpixel((image.width - 50, image.height // 2))

    assert [middle(frame) for frame in range(4)] == pytest.approx([255, 0, 128, 255], abs=3)
    animation.seek(1)
    assert animation.info["duration"] == 500


def test_training_run_plots_means_of_50_steps_the_healthy_run_and_the_grid():
    stats = torch.stack([torch.arange(100.0) + k for k in (0, 100, 200, 300)], dim=1)
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(-1, 1, 8, 8)
    figure = plotting.plot_training_run("title", stats, images, CLASSES, stats[:50] + 1000)
    losses, probabilities, grid = figure.axes
    means = {
        line.get_label(): list(line.get_ydata())
        for line in (*losses.lines, *probabilities.lines)
        if line.get_linestyle() == "-"
    }
    assert means == {
        "loss of D": [24.5, 74.5],
        "loss of G": [124.5, 174.5],
        "D(x), real images": [224.5, 274.5],
        "D(G(z)), generated": [324.5, 374.5],
    }
    dashed = [line for axes in (losses, probabilities) for line in axes.lines if line.is_dashed()]
    heights = [line.get_ydata()[0] for line in dashed if line.get_linestyle() == "--"]
    assert heights == [1024.5, 1124.5, 1224.5, 1324.5]
    (loss_g,) = [line for line in losses.lines if line.get_label() == "loss of G"]
    assert list(loss_g.get_xdata()) == [25, 75]
    greys = grid.images[0].get_array()
    assert [greys[6 + 10 * (i // 2), 6 + 10 * (i % 2), 0] for i in range(6)] == pytest.approx(
        torch.linspace(0, 1, 6).tolist(), abs=1e-6
    )
    assert [label.get_text() for label in grid.get_yticklabels()] == list(CLASSES)
    assert figure.get_suptitle() == "title"
    for axes in (losses, probabilities):  # blue is D's, or real; orange is G's, or generated
        colours = {line.get_label(): line.get_color() for line in axes.lines}
        for place in ("left", "right"):
            title = {"left": axes._left_title, "right": axes._right_title}[place]
            named = [label for label in colours if label.startswith(title.get_text())]
            assert len(named) == 1 and colours[named[0]] == title.get_color()


def run_figure(largest_loss, healthy=None):
    stats = torch.rand(100, 4)
    stats[50:, 1] = largest_loss
    images = torch.zeros(3, 1, 8, 8)
    return plotting.plot_training_run("title", stats, images, CLASSES, healthy)


def test_only_a_large_loss_has_a_logarithmic_axis_and_a_loss_of_0_stays_on_it():
    assert run_figure(8.0).axes[0].get_yscale() == "linear"
    losses = run_figure(20_000.0).axes[0]
    to_pixels = losses.transData.transform
    heights = [to_pixels((0, loss))[1] for loss in (0, 0.69, 1.39, 20, 200, 2000, 20_000)]
    steps = torch.tensor(heights).diff()
    assert (steps > 5).all() and steps[-3:].tolist() == pytest.approx([steps[-1].item()] * 3)
    low, high = losses.get_ylim()
    assert low == 0 and high >= 20_000


def test_a_series_of_runs_has_its_legend_once_in_the_figure_of_the_healthy_run():
    healthy, other = run_figure(1.0), run_figure(1.0, healthy=torch.rand(100, 4))
    legends = [[axes.get_legend() for axes in figure.axes[:2]] for figure in (healthy, other)]
    assert all(legends[0]) and legends[1] == [None, None]


def test_class_grids_stand_under_their_titles_in_order():
    grids = {f"no {i}": torch.full((3, 1, 8, 8), i / 5) for i in range(5)}
    figure = plotting.plot_class_grids(grids, CLASSES, across=2)
    assert [axes.get_title() for axes in figure.axes] == list(grids)
    greys = [axes.images[0].get_array()[6, 6, 0] for axes in figure.axes]
    assert greys == pytest.approx([(i / 5 + 1) / 2 for i in range(5)])
    places = [axes.get_position() for axes in figure.axes]
    assert places[0].x1 < places[1].x0 and places[0].y0 == places[1].y0
    assert places[0].y0 > places[2].y1
    assert places[2].x0 == pytest.approx(places[0].x0, abs=1e-9)
    named = [bool(axes.yaxis.get_tick_params()["labelleft"]) for axes in figure.axes]
    assert named == [True, False, True, False, True]


def test_matrix_has_rows_down_and_columns_across():
    matrix = torch.arange(9.0).view(3, 3)
    axes = plotting.plot_matrix(matrix, CLASSES, "label", (0, 8), rows="asked", columns="got").axes[
        0
    ]
    assert axes.images[0].get_array().tolist() == matrix.tolist()
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("asked", "got")
    assert axes.yaxis_inverted()  # row 0 on top


def test_class_dots_and_the_lines_of_real_images():
    axes = plotting.plot_class_dots({"a": 0.2, "b": 0.7}, {"b": 0.9, "a": 0.8}, "GAN-test").axes[0]
    found = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert found == {"generated": [0.2, 0.7], "real images": [0.8, 0.9]}


def test_show_gives_the_image_and_its_alternative_text(displayed):
    cg.show(cg.plot_images(torch.zeros(1, 1, 8, 8), ["grey"]), alt="A grey square.")
    ((data, options),) = displayed
    assert data["text/plain"] == "A grey square."
    assert options["metadata"]["image/png"]["alt"] == "A grey square."
    assert colours_of(data)[0][1] == (127, 127, 127)  # besides the white around it


def test_a_figure_of_pyplot_that_was_shown_is_closed(displayed):
    open_before = set(plotting.plt.get_fignums())
    cg.show(plotting.plt.figure(), alt="Nothing.")  # else a notebook would show it twice
    assert len(displayed) == 1 and set(plotting.plt.get_fignums()) == open_before


def test_without_a_notebook_the_text_is_printed_and_how_to_save(capsys):
    figure = cg.plot_images(torch.zeros(1, 1, 8, 8), ["grey"])
    cg.show(figure, alt="A grey square.")
    shown = capsys.readouterr().out
    plotting.show_animation([figure, figure], alt="A grey square.")
    assert capsys.readouterr().out == shown
    text, hint = shown.splitlines()
    assert text == "A grey square." and "figure.savefig(path)" in hint
    cg.show_source(cg.Generator.forward)
    assert capsys.readouterr().out.startswith("def forward(self, z: Tensor, labels: Tensor)")


IMAGES = torch.zeros(9, 1, 8, 8)
PLOTS = {  # every plot that shows names of classes, here of three
    "grid": lambda names: cg.plot_class_grid(IMAGES, names, names),
    "grids": lambda names: plotting.plot_class_grids({name: IMAGES for name in names}, names),
    "images": lambda names: cg.plot_images(IMAGES[:3], names),
    "run": lambda names: plotting.plot_training_run(names[0], torch.rand(60, 4), IMAGES, names),
    "matrix": lambda names: plotting.plot_matrix(torch.eye(3), names, "label", (0, 1)),
    "dots": lambda names: plotting.plot_class_dots(*[dict.fromkeys(names, 0.5)] * 2, "label"),
}
every_plot = pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def test_pyplot_keeps_no_figure_and_no_memory():
    open_before = plotting.plt.get_fignums()
    figures = [plot(CLASSES) for plot in PLOTS.values()]
    figures.append(cg.plot_history({name: [0.5] for name in plotting.STATS}))
    assert plotting.plt.get_fignums() == open_before
    kept = [weakref.ref(figure) for figure in figures]
    del figures
    gc.collect()
    assert not any(reference() for reference in kept)


def test_a_notebook_shows_a_figure_that_is_the_value_of_a_cell():
    data, _ = DisplayFormatter().format(cg.plot_images(torch.zeros(1, 1, 8, 8), ["grey"]))
    assert Image.open(io.BytesIO(data["image/png"])).width > 80


@every_plot
def test_a_dollar_in_a_name_is_a_dollar(plot):
    names = ("$5 to $10", "Ba$$in", r"\$x\$")
    figure = plot(names)
    figure.savefig(io.BytesIO())  # as a formula, $$ raises
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [text for text in texts(figure) if text.get_text() in names]
    assert {text.get_text() for text in found} == {*names}
    for text in found:
        style = {"size": text.get_size(), "rotation": text.get_rotation(), "parse_math": False}
        expected = figure.text(0, 0, text.get_text(), **style)
        extents = [each.get_window_extent(renderer).width for each in (text, expected)]
        assert extents[0] == pytest.approx(extents[1], abs=1)


@every_plot
def test_characters_come_from_a_font_that_has_them(plot):
    name = "\N{LATIN SMALL LETTER D WITH PALATAL HOOK}"  # in matplotlib's STIX, not in its DejaVu
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a box
        figure = plot((name, "b", "c"))
        figure.savefig(io.BytesIO(), bbox_inches="tight")
    assert name in {text.get_text() for text in texts(figure)}


def test_one_warning_names_the_class_whose_characters_no_font_has():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            figure = PLOTS["grids"](("cat", "dog\u0378", "cow"))  # \u0378 stands for no character
            figure.savefig(io.BytesIO(), bbox_inches="tight")
    (warning,) = warned
    assert "dog\u0378" in str(warning.message) and "cat" not in str(warning.message)
    assert {"cat", "dog\N{REPLACEMENT CHARACTER}"} <= {text.get_text() for text in texts(figure)}


LONG = "a name, " * 40


@every_plot
def test_long_names_are_cut_and_leave_the_layout(plot):
    sizes = []
    for names in (("twenty characters :)", "b\nb", "c"), (LONG, "b\nb\nb\nb", "c" * 300)):
        png = io.BytesIO()
        figure = plot(names)
        figure.savefig(png, dpi=100, bbox_inches="tight")
        places = [axes.get_window_extent().bounds for axes in figure.axes]
        sizes.append([*Image.open(png).size, *torch.tensor(places)[:, 2:].flatten().tolist()])
    usual, large = sizes
    assert large == pytest.approx(usual, rel=0.25)
    lines = [text.get_text().splitlines() for text in texts(figure)]
    assert any(line[0].startswith("a name") for line in lines)
    assert max(map(len, lines)) == 2 and ["b", "b…"] in lines


def test_long_names_leave_the_curves_of_a_run_free():
    figure = PLOTS["run"]((LONG, "c" * 300, "c"))
    figure.savefig(io.BytesIO())
    _, probabilities, grid = figure.axes
    names = grid.yaxis.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    assert probabilities.get_window_extent().x1 < names.x0


def colours_of(data):
    """The colours of the image that was shown, most frequent first, without white: (n, rgb)."""
    image = Image.open(io.BytesIO(data["image/png"])).convert("RGB")
    colours = sorted(image.getcolors(image.width * image.height), reverse=True)
    return [(count, rgb) for count, rgb in colours if rgb != (255, 255, 255)]


def test_fewer_colours_have_no_faint_tints_and_none_keeps_all_colours(displayed):
    values = torch.linspace(-1, 1, 9).view(3, 3)
    for colours in (16, None):
        cg.show(plotting.plot_matrix(values, CLASSES, "label", (-1, 1)), alt="A.", colours=colours)
    (reduced, _), (complete, _) = displayed
    spread = [max(rgb) - min(rgb) for _, rgb in colours_of(reduced)]
    assert len(spread) < 16 and not any(0 < tint < 35 for tint in spread)
    scale = plotting.plt.get_cmap("PuOr")
    for value in values.flatten().tolist():
        due = tuple(round(255 * part) for part in scale((value + 1) / 2)[:3])
        assert any(
            max(abs(a - b) for a, b in zip(rgb, due, strict=True)) <= 1 and count > 1000
            for count, rgb in colours_of(complete)
        ), f"no cell has the colour of {value}"


def test_show_source_is_the_package_source(displayed):
    cg.show_source(cg.Generator.forward, cg.generator_loss)
    ((data, _),) = displayed
    assert data["text/plain"].startswith("def forward(self, z: Tensor, labels: Tensor)")
    assert inspect.getsource(cg.generator_loss).rstrip() in data["text/plain"]
    assert data["text/markdown"] == f"```python\n{data['text/plain']}\n```"


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [  # each would otherwise show something wrong without an error
        (lambda: cg.plot_class_grid(IMAGES.byte(), CLASSES), TypeError, "images must be a float"),
        (lambda: cg.plot_class_grid(IMAGES[:5], CLASSES), ValueError, "images must be as many"),
        (lambda: cg.plot_class_grid(IMAGES / 0, CLASSES), ValueError, "images must be finite"),
        (lambda: cg.plot_images(IMAGES[:, 0], [""] * 9), ValueError, "images must have shape"),
        (lambda: cg.plot_images(IMAGES.expand(-1, 2, 8, 8), [""] * 9), ValueError, "1 or 3"),
        (lambda: cg.plot_images(IMAGES, [""] * 8), ValueError, "titles must be one per image"),
        (
            lambda: plotting.plot_class_grids({"a": IMAGES, "b": IMAGES[:3]}, CLASSES),
            ValueError,
            "grids must be class grids of one size",
        ),
        (
            lambda: plotting.plot_matrix(torch.zeros(3, 2), CLASSES, "label", (0, 1)),
            ValueError,
            "matrix must have a row and a column for each",
        ),
        (lambda: cg.show(plotting.Figure(), " "), ValueError, "alt must say in words"),
    ],
)
def test_mistakes_that_matplotlib_would_not_notice(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake()

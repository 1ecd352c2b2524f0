"""The diagrams are what their script draws; each is legible, and shown in a notebook."""

import importlib.util
import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow  # two of them show images of the dataset

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
IMAGES = NOTEBOOKS / "images"
spec = importlib.util.spec_from_file_location("diagrams", IMAGES / "diagrams.py")
diagrams = importlib.util.module_from_spec(spec)
spec.loader.exec_module(diagrams)


@pytest.fixture(params=diagrams.DIAGRAMS)
def name(request):
    return request.param


@pytest.fixture
def figure(name):
    return diagrams.DIAGRAMS[name]()


def test_committed_file_is_what_the_script_draws(name, figure, tmp_path):
    assert difference(name, figure, tmp_path) is None


def test_a_changed_number_or_a_missing_line_is_noticed(tmp_path):
    figure = diagrams.line_and_arc()
    texts_of(figure)[-1].set_text("length\nabout 8")
    assert difference("line_and_arc", figure, tmp_path) == "words"
    figure = diagrams.line_and_arc()
    figure.axes[0].lines[0].remove()
    assert "RMS" in difference("line_and_arc", figure, tmp_path)


def difference(name, figure, folder):
    """Return None if the committed file shows the figure, else how it differs.

    Versions of matplotlib render text differently, by more than one digit changes an image. The
    words are therefore compared as words, which the file holds too, and the rest as an image.
    """
    committed, drawn = IMAGES / f"{name}.png", folder / "drawn.png"
    diagrams.save(figure, drawn)
    if Image.open(committed).text["Description"] != Image.open(drawn).text["Description"]:
        return "words"
    shapes = folder / "committed_shapes.png", folder / "drawn_shapes.png"
    without_text(committed, figure).save(shapes[0])
    without_text(drawn, figure).save(shapes[1])
    return compare_images(*map(str, shapes), tol=0.5)  # a solid arrow made a dashed one: 1.1


def without_text(path, figure):
    """Return the image with white rectangles in the places of the figure's text."""
    image = Image.open(path).convert("RGB")
    pen = ImageDraw.Draw(image)
    for text in texts_of(figure):
        left, bottom, right, top = text.get_window_extent().padded(12).extents
        pen.rectangle((left, image.height - top, right, image.height - bottom), fill="white")
    return image


def texts_of(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_every_image_comes_from_the_script_or_from_notebook_06():
    images = {path.stem for path in IMAGES.glob("*.png")}
    assert images == {*diagrams.DIAGRAMS, "before_after"}


def test_is_as_wide_as_a_page_and_has_no_small_text(name, figure):
    assert Image.open(IMAGES / f"{name}.png").width == 1100
    for text in texts_of(figure):
        subscript = 0.7 if "_" in text.get_text() else 1  # how much smaller matplotlib sets it
        assert text.get_fontsize() * subscript >= 10.5, text


def test_text_is_not_cut_off_and_does_not_overlap(figure):
    extents = {text: text.get_window_extent() for text in texts_of(figure)}
    page = figure.bbox.padded(-10)
    for text, extent in extents.items():
        assert page.contains(*extent.min) and page.contains(*extent.max), text
    for (one, extent), (other, other_extent) in combinations(extents.items(), 2):
        assert not extent.overlaps(other_extent), (one, other)


def test_a_notebook_shows_it_with_alternative_text(name):
    shown = re.findall(rf'<img src="images/{name}\.png" alt="(.*?)"', all_markdown())
    assert shown, f"no notebook shows {name}.png"
    assert all(len(alt.split()) >= 8 for alt in shown)


def all_markdown():
    notebooks = [json.loads(path.read_text("utf-8")) for path in NOTEBOOKS.glob("*.ipynb")]
    cells = [cell for notebook in notebooks for cell in notebook["cells"]]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")

"""The book's explorer: the shipped generators in a browser, from a file, without a network."""

import base64
import io
import json
import re

import explorer
import pytest
import torch
from playwright.sync_api import expect

import cgan_utils as cg

RECIPES = ("original", "tuned")
PAIR, GRIDS = RECIPES, ("original-grid", "tuned-grid")  # canvases
CONTROLS = ("class", "blend with", "blend", "seed", "walk", "epoch")
MAX_BYTES = 6_000_000
MAX_MILLISECONDS = 50
CONTRAST = 4.5  # of text to its background, at least: WCAG 2.2, 1.4.3

browser_test = pytest.mark.browser
expect.set_options(timeout=60_000)  # milliseconds


@pytest.fixture
def open_page(browser, book):
    """A function that opens the page from its file with the network off; nothing may fail."""
    contexts, errors, asked = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((book / f"{explorer.PAGE}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked and not errors
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.fixture(params=[390, 1280], ids=["phone", "desktop"])
def page(request, open_page):
    return open_page(viewport={"width": request.param, "height": 900})


def pixels(page, canvas):
    """The grey levels of a canvas."""
    script = """id => {
      const { width, height } = document.getElementById(id);
      const context = document.getElementById(id).getContext("2d");
      return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0);
    }"""
    return page.evaluate(script, canvas)


@browser_test
@pytest.mark.parametrize("recipe", RECIPES)
def test_images_are_those_of_sample(recipe, page):
    generator = cg.load_pretrained(recipe)
    labels = torch.arange(10)
    latent = cg.sample_latent(10, generator.config.latent_dim, seed=5)
    script = """([recipe, labels, latent]) =>
      sample(recipe, labels, latent.map((z) => Float32Array.from(z))).map((image) => [...image])"""
    images = page.evaluate(script, [recipe, labels.tolist(), latent.tolist()])
    expected = cg.sample(generator, labels, latent=latent).flatten(1)
    grey_levels = 127.5 * (torch.tensor(images) - expected).abs()
    assert grey_levels.max() < 0.1


@browser_test
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_shows_the_class_asked_for_and_its_seeds_z(recipe, page):
    """Its z is normal, the same for both generators, and on a walk of typical length."""
    generator = cg.load_pretrained(recipe)
    size, scale = generator.config.latent_dim, 1.1 if recipe == "tuned" else 1.0
    many = torch.tensor(page.evaluate("[...Array(100).keys()].map((s) => [...sampleLatent(s)])"))
    assert many.shape == (100, 100) and len(many.unique()) > 9_900
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05
    assert abs((many.abs() < 1).double().mean() - 0.683) < 0.02

    page.get_by_label("class", exact=True).select_option("Bag")
    page.get_by_label("seed", exact=True).fill("7")
    z = scale * many[7:8, :size]
    shown = torch.tensor(pixels(page, recipe)).view(28, 28)
    expected = (cg.sample(generator, "Bag", latent=z)[0, 0] + 1) * 127.5
    assert (shown - expected).abs().max() < 0.6  # half a grey level: rounding

    page.get_by_label("blend with", exact=True).select_option("Coat")
    page.get_by_label("blend", exact=True).fill("25")
    page.get_by_label("walk", exact=True).fill("50")
    start, end = scale * many[7, :size], scale * many[8, :size]
    angle = torch.cosine_similarity(start, end, dim=0).acos()
    middle = (start + end) / (2 * (angle / 2).cos())  # the middle of the arc
    label = [generator.config.classes.index(name) for name in ("Bag", "Coat")]
    embedded = torch.lerp(*generator.embedding.weight[label], 0.25)
    expected = (generator.decode(middle[None], embedded[None])[0, 0] + 1) * 127.5
    shown = torch.tensor(pixels(page, recipe)).view(28, 28)
    assert (shown - expected).abs().max() < 0.6


@browser_test
def test_class_grids_have_a_class_per_row_and_a_z_per_column(page):
    page.get_by_label("class", exact=True).select_option("Coat")
    page.get_by_label("seed", exact=True).fill("22")  # column 3 if the grid starts with 20
    coat = torch.tensor(pixels(page, "tuned")).view(28, 28)
    page.get_by_label("seed", exact=True).fill("20")
    expect(page.locator("#tuned-grid")).to_have_attribute("aria-label", re.compile("20 to 24"))
    grid = torch.tensor(pixels(page, "tuned-grid")).view(298, 148)
    same = [
        (row, column)
        for row in range(10)
        for column in range(5)
        if torch.equal(grid[30 * row :, 30 * column :][:28, :28], coat)
    ]
    assert same == [(4, 2)]


@browser_test
def test_every_control_obeys_the_keyboard_and_changes_its_images(page):
    data = "(id) => document.getElementById(id).toDataURL()"
    expect(page.locator("#tuned-grid")).to_have_attribute("aria-label", re.compile("20 to 24"))
    for label, key, text, changed in (
        ("class", "ArrowUp", "Shirt; z of seed 20", PAIR),
        ("blend", "PageUp", r"Shirt, blended \d+% with Ankle boot; z of seed 20", PAIR),
        ("blend with", "ArrowUp", r"Shirt, blended \d+% with Bag; z of seed 20", PAIR),
        ("seed", "ArrowRight", r"with Bag; z of seed 21", PAIR + GRIDS),
        ("walk", "End", r"z of seed 21, 100% of the way to seed 22", PAIR + GRIDS),
    ):
        before = {canvas: page.evaluate(data, canvas) for canvas in PAIR + GRIDS}
        page.get_by_label(label, exact=True).focus()
        page.keyboard.press(key)
        expect(page.locator("#shown")).to_have_text(re.compile(text))
        for canvas in PAIR + GRIDS:
            same = page.evaluate(data, canvas) == before[canvas]
            assert same == (canvas not in changed), (label, canvas)
    name = page.locator("#original").get_attribute("aria-label")
    assert re.fullmatch(r"Image by the original generator: Shirt, blended \d+% with Bag", name)


@browser_test
def test_epochs_play_when_asked_to_and_have_a_slider(open_page):
    page = open_page()
    page.clock.install()
    page.reload()
    slider, button = page.get_by_label("epoch", exact=True), page.get_by_role("button", name="Play")
    shown = page.locator("#epochs")
    image = "[...document.querySelectorAll('#epochs canvas')].map((c) => c.toDataURL()).join()"
    page.clock.run_for(10_000)
    expect(shown).to_have_attribute("aria-label", "One image of each class, untrained")
    untrained = page.evaluate(image)

    button.click()
    page.clock.run_for(2_000)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(10_000)
    expect(shown).to_have_attribute("aria-label", "One image of each class, epoch 3")
    button.click()
    page.clock.run_for(10_000)
    expect(slider).to_have_attribute("aria-valuetext", "epoch 10")
    expect(button).to_be_visible()
    seen = {untrained, page.evaluate(image)}
    slider.focus()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
        seen.add(page.evaluate(image))
    assert len(seen) == 11


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_accessible_in_light_and_dark(scheme, open_page):
    page = open_page(color_scheme=scheme)
    expect(page.locator("html")).to_have_attribute("data-theme", scheme)
    for label in CONTROLS:
        control = page.get_by_label(label, exact=True)
        control.focus()
        page.keyboard.press("Shift")  # as by the keyboard, not by a script
        assert control.evaluate("e => parseFloat(getComputedStyle(e).outlineWidth)") >= 2, label
    images = page.locator(".explorer [role=img]")
    assert images.count() == 5
    for image in images.all():
        expect(image).to_have_attribute("aria-label", re.compile(r"(\S+ ){4,}"))
    colours = page.evaluate("""() => [...document.querySelectorAll(
        ".explorer :is(p, label, output, span, figcaption, select, button)")].map((element) => {
      let behind = element;
      while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") {
        behind = behind.parentElement;
      }
      return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
    })""")
    assert len(colours) > 30
    for text, background in colours:
        light, dark = sorted((luminance(text), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= CONTRAST, (text, background)


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    shares = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@browser_test
def test_images_change_at_once(open_page):
    page = open_page()
    script = """(show) => Math.min(...[...Array(20).keys()].map((seed) => {
      element("seed").value = seed;
      const start = performance.now();
      show();
      return performance.now() - start;
    }))"""
    pair, grids = (page.evaluate(f"({script})({show})") for show in ("showPair", "showGrids"))
    assert pair < MAX_MILLISECONDS
    assert grids < 75 * pair  # they are 50 pairs


@pytest.mark.book
def test_is_small_and_loads_on_its_own_page_alone(book):
    page, other = (book / "book" / f"{name}.html" for name in ("explorer", "glossary"))
    static = book / "_static"
    assert sum((static / script).stat().st_size for script in explorer.SCRIPTS) < MAX_BYTES
    for script in explorer.SCRIPTS:
        assert f"_static/{script}" in page.read_text(encoding="utf-8")
        assert f"_static/{script}" not in other.read_text(encoding="utf-8")


def notebook_with_strip(path, images, classes):
    """Write a notebook that shows images (epochs, classes, 1, 28, 28) as notebook 03 does."""
    strip = images.transpose(0, 1).flatten(0, 1)
    figure = cg.plot_class_grid(strip, classes, range(len(images)))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100, bbox_inches="tight")
    output = {
        "data": {"image/png": base64.b64encode(png.getvalue()).decode()},
        "metadata": {"image/png": {"alt": f"{explorer.STRIP_ALT}: noise to clothes."}},
    }
    path.write_text(json.dumps({"cells": [{"source": ""}, {"outputs": [output]}]}))
    return path


def test_epoch_images_are_those_of_the_strip(tmp_path):
    classes = cg.CGANConfig.original().classes
    images = torch.rand(11, 10, 1, 28, 28) * 1.9 - 1  # up to 0.9: white is between the images
    path = notebook_with_strip(tmp_path / "03.ipynb", images, classes)
    expected = (images[:, :, 0] + 1) * 127.5
    assert (torch.from_numpy(explorer.epoch_images(path)) - expected).abs().max() <= 1

    path = notebook_with_strip(tmp_path / "03.ipynb", images[:9], classes)
    with pytest.raises(ValueError, match="10 x 9 images"):
        explorer.epoch_images(path)

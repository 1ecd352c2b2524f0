"""What a reader sees in a browser: notebooks run in JupyterLab, and the book on two screens."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

CLONE = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.browser

expect.set_options(timeout=60_000)  # milliseconds; a busy machine is slow, not wrong
PATIENCE = 600  # seconds for a notebook, on a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab, and the folder it serves: the notebooks, not yet executed."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    for path in (CLONE / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count, cell.outputs = None, []
        nbformat.write(notebook, folder / path.name)

    quiet = home / "lab/user-settings/@jupyterlab/apputils-extension"
    quiet.mkdir(parents=True)
    settings = '{"fetchNews": "false", "checkForUpdates": false}'  # no question, no network
    (quiet / "notification.jupyterlab-settings").write_text(settings)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(home) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    options = {
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "",
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(address + "/api"), 120, (home / "log").read_text)
        yield address, folder
    finally:
        server.terminate()
        server.wait(60)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def wait_until(condition, seconds, explain=lambda: ""):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {explain()}"
        time.sleep(0.2)


def run_all_cells(page, lab, name):
    """Open a notebook and run it by its menu; the notebook as JupyterLab then saves it."""
    address, folder = lab
    page.goto(f"{address}/lab/tree/{name}?reset")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=300_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def finished():
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        code = [cell for cell in read().cells if cell.cell_type == "code"]
        return code[-1].execution_count is not None or errors(code)

    def read():
        return nbformat.read(folder / name, as_version=4)

    wait_until(finished, PATIENCE)
    return [cell for cell in read().cells if cell.cell_type == "code"]


def errors(code):
    return [output for cell in code for output in cell.outputs if output.output_type == "error"]


def assert_executed(code):
    assert not errors(code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_notebook_01_runs_in_jupyterlab(browser, lab):
    page = browser.new_page()
    assert_executed(run_all_cells(page, lab, "01_data.ipynb"))
    page.close()


def test_the_explorer_in_notebook_04_obeys_the_keyboard(browser, lab):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    assert_executed(run_all_cells(page, lab, "04_sampling.ipynb"))

    page.keyboard.press("Control+Shift+k")
    page.locator(".jp-TableOfContents").get_by_text("Explore").click()
    screen = page.locator(".widget-html img")
    for label, keys, drawn in (
        ("seed", ["ArrowRight"], "Coat, blended 0% with Trouser"),
        ("walk", ["End"], "Coat, blended 0% with Trouser"),
        ("blend", ["PageUp"], "Coat, blended 25% with Trouser"),
        ("blend with", ["Space", "ArrowUp", "Enter"], "Coat, blended 25% with T-shirt/top"),
        ("class", ["Space", "ArrowUp", "Enter"], "Dress, blended 25% with T-shirt/top"),
    ):
        before = screen.get_attribute("src")
        control = page.locator(".widget-inline-hbox").filter(
            has=page.get_by_text(label, exact=True)
        )
        control.locator("select, [role=slider]").focus()
        for key in keys:
            page.keyboard.press(key)
        wait_until(lambda before=before: screen.get_attribute("src") != before, 60, label.__str__)
        wait_until(lambda drawn=drawn: screen.get_attribute("alt") == drawn, 60, drawn.__str__)
    page.close()


WIDTHS = 390, 1280  # pixels, of a phone's screen and a desktop's


@pytest.fixture(params=WIDTHS, ids=["phone", "desktop"])
def page(request, browser):
    """A page on a screen of that width, which must load nothing but the book's own files."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert asked and not [url for url in asked if not url.startswith(("file:", "data:"))]


def test_the_landing_page_shows_its_image(page, book):
    page.goto((book / "index.html").as_uri())
    hero = page.get_by_alt_text("Ten classes of clothes").first
    expect(hero).to_be_visible()
    assert hero.evaluate("image => image.complete && image.naturalWidth") > 500


def test_contents_previous_and_next_lead_through_the_book(page, book):
    page.goto((book / "index.html").as_uri())
    contents = page.get_by_role("link", name="02 - Models: how").first
    if not contents.is_visible():  # a phone has them behind a button
        page.get_by_label("Toggle primary sidebar").click()
    contents.click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("02 - Models")
    page.get_by_title("next page").click()
    expect(heading).to_contain_text("03 - Training")
    for name in ("02 - Models", "01 - Data"):
        page.get_by_title("previous page").click()
        expect(heading).to_contain_text(name)


def test_search_finds_a_word(page, book):
    page.goto((book / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.get_by_role("searchbox").fill("detach")
    page.keyboard.press("Enter")
    hit = page.locator("ul.search li a").filter(has_text="03 - Training")
    expect(hit.first).to_be_visible()


@pytest.mark.parametrize("page", WIDTHS[:1], ids=["both"], indirect=True)
def test_no_page_is_wider_than_the_screen(page, book):
    for path in sorted(book.rglob("*.html")):
        page.goto(path.as_uri())
        for screen in WIDTHS:
            page.set_viewport_size({"width": screen, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= screen, path.name

"""The notebooks as a static site: `make book` writes it to site/html, index.html first.

The source folder is the clone itself, so that the links between README and notebooks hold in the
book as they do in the repository. Nothing is executed, and no page needs a network.
"""

import json
import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode, math_block
from latex2mathml.converter import convert

BOOK = Path(__file__).parent
sys.path[:0] = [str(BOOK), str(BOOK.parent)]  # explorer.py, and this clone's package

project = html_title = "A conditional GAN"
author = "its contributors"
extensions = ["myst_nb", "explorer"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "notebooks/**.ipynb"]
include_patterns += ["book/explorer.md", "book/glossary.md"]
exclude_patterns = [".*", "data", "runs", "site", "**/.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_theme_options = {"navbar_persistent": [], "show_toc_level": 2, "toc_title": "On this page"}
html_static_path, html_css_files = ["static"], ["book.css"]
html_math_renderer = "mathml"
html_show_copyright = False
nb_execution_mode = "off"  # the pages show the outputs as committed
nb_ipywidgets_js = {}  # these scripts would come from a CDN, and widgets need a kernel anyway
myst_enable_extensions = ["dollarmath", "html_image"]  # <img width="...">
myst_heading_anchors = 3


def prepare_source(app, docname, content):
    """Add to a page's source what only the book needs."""
    if docname == root_doc:
        content[0] += (BOOK / "contents.md").read_text(encoding="utf-8")
    elif docname.startswith("notebooks/"):
        content[0] = with_alternative_texts(content[0])
    else:
        content[0] = re.sub(r"\(notebook (\d\d)\)", link_to_notebook, content[0])


def with_alternative_texts(notebook):
    """Copy each image's alternative text to its cell.

    Jupyter stores the text with the image, where the notebooks have it; myst-nb reads the cell.
    """
    notebook = json.loads(notebook)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return json.dumps(notebook)


def link_to_notebook(match):
    """Return a link to the notebook, or the text unchanged if it does not exist."""
    found = sorted((BOOK.parent / "notebooks").glob(f"{match[1]}_*.ipynb"))
    return f"([notebook {match[1]}](../notebooks/{found[0].name}))" if found else match[0]


def write_mathml(self, node):
    """Write a formula as MathML, which browsers render without a script or fonts to load."""
    tag, display = ("div", "block") if isinstance(node, math_block) else ("span", "inline")
    formula = convert(node.astext(), display=display)
    self.body.append(f'<{tag} class="math">{formula}</{tag}>')
    raise SkipNode


def setup(app):
    app.connect("source-read", prepare_source)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))

"""The book that `make book` builds (it fails on any warning): complete, and needing no network."""

import html
import json
import re
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    p for kind in ("", "solutions/") for p in (CLONE / "notebooks").glob(kind + "[0-9]*.ipynb")
)
PAGES = [path.relative_to(CLONE).with_suffix(".html") for path in NOTEBOOKS]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.book
def test_every_notebook_is_a_page_in_the_contents(book):
    contents = (book / "index.html").read_text(encoding="utf-8")
    others = ("book/explorer.html", "book/glossary.html", "CONTRIBUTING.html")
    for page in [*PAGES, *map(Path, others)]:
        assert (book / page).exists() and f'href="{page}"' in contents, page


@pytest.mark.book
def test_pages_load_nothing_from_elsewhere(book):
    loading = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*"
        r"|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*|\burl\([\"']?(?:https?:)?//[^)]*"
    )
    files = [path for kind in ("*.html", "*.css") for path in book.rglob(kind)]
    assert len(files) > len(PAGES)
    for path in files:
        assert not loading.findall(path.read_text(encoding="utf-8")), path.name


@pytest.mark.book
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_has_the_outputs_as_committed(path, book):
    page = path.relative_to(CLONE).with_suffix(".html")
    text = html.unescape((book / page).read_text(encoding="utf-8"))
    for cell in cells(path):
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                assert f'alt="{alt}"' in text
            if output.get("name") == "stdout":
                assert "".join(output["text"]).splitlines()[0] in text


@pytest.mark.book
def test_formulas_are_rendered_completely(book):
    formulas = []
    for page in PAGES:
        text = (book / page).read_text(encoding="utf-8")
        formulas += re.findall(r"<math.*?</math>", text, re.DOTALL)
        assert "$" not in re.sub(r"<(script|pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert formulas and not [formula for formula in formulas if "\\" in formula]


def test_the_glossary_names_the_notebook_that_has_the_word():
    glossary = (CLONE / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\w.*)\n  [^)]*\(notebook (\d\d)\)$", glossary, re.MULTILINE)
    terms = [term for term, _ in entries]
    assert terms == sorted(terms, key=str.casefold) and len(terms) >= 17
    assert len(terms) == glossary.count("(notebook ")
    for term, number in entries:
        last_word = term.split()[-1].rstrip("s").casefold()
        for path in (CLONE / "notebooks").glob(f"{number}_*.ipynb"):
            sources = ["".join(cell["source"]) for cell in cells(path)]
            assert last_word in "\n".join(sources).casefold(), (term, path.name)

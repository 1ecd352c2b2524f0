"""The explorer of notebook 04 shows a new image within 100 ms of a control's change."""

import ast
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat

import cgan_utils as cg

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "04_sampling.ipynb"


def test_a_change_is_shown_at_once():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (explorer,) = [source for source in code if "controls = {" in source]
    imports = code[0].rsplit("\n\n", 1)[0]  # all but the line that loads the data
    earlier = ast.parse("\n".join(code[: code.index(explorer)])).body
    functions = [ast.unparse(node) for node in earlier if isinstance(node, ast.FunctionDef)]

    generator = cg.Generator(cg.CGANConfig.original())
    data = SimpleNamespace(classes=generator.config.classes)  # all that the explorer reads
    names = {"generator": generator, "data": data}
    for source in (imports, *functions, explorer):
        exec(source, names)

    seconds = []
    for seed in range(21, 41):  # it starts with 20
        before, start = names["screen"].value, time.process_time()
        names["controls"]["seed"].value = seed
        seconds.append(time.process_time() - start)
        assert names["screen"].value != before
    assert sorted(seconds)[10] < 0.1

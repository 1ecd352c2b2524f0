"""The notebooks as committed: executed, readable, and mostly compared strictly by nbval."""

import ast
import collections
import itertools
import json
import re
from pathlib import Path
from statistics import fmean, median
from types import ModuleType

import nbformat
import pytest

import cgan_utils as cg
from cgan_utils.evaluation import METRICS

pytestmark = pytest.mark.slow  # reads all notebooks

CLONE = Path(__file__).resolve().parents[2]
RESULTS = CLONE / "benchmarks" / "results"
NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((CLONE / "notebooks" / "solutions").glob("*.ipynb"))
LOOSE = "nbval-ignore-output"
both = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: path.stem)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


@pytest.fixture
def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.fixture
def text(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_there_are_notebooks():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == [f"{i:02d}" for i in range(1, len(numbers) + 1)] and len(numbers) >= 4


@both
def test_executed_top_to_bottom_without_alarm(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@both
def test_has_known_tags_only(code):
    assert {tag for cell in code for tag in cell.metadata.get("tags", [])} <= {LOOSE}


@both
def test_small_and_free_of_volatile_metadata(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 500_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@both
def test_names_no_folder_of_the_machine_that_ran_it(path):
    content = path.read_text(encoding="utf-8")
    for folder in (str(CLONE), str(Path.home()), "/home/", "/Users/"):
        assert folder not in content


def test_nbval_compares_most_cells(code):
    with_output = [cell for cell in code if cell.outputs]
    strict = [cell for cell in with_output if LOOSE not in cell.metadata.get("tags", [])]
    assert len(strict) >= 8 and len(strict) / len(with_output) >= 0.6


@both
def test_what_nbval_does_not_compare_is_short_or_checked(code):
    """Checked: the cell asserts something, or the next one prints what nbval compares."""
    for cell, after in itertools.pairwise([*code, None]):
        if LOOSE not in cell.metadata.get("tags", []) or len(cell.source.splitlines()) <= 4:
            continue
        compared = after and after.outputs and LOOSE not in after.metadata.get("tags", [])
        assert compared or re.search(r"^\s*assert ", cell.source, re.MULTILINE), cell.source


def test_figures_have_alt_text_and_are_interpreted(cells):
    for cell, after in itertools.pairwise(cells):
        figures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        assert len(figures) <= 1
        for figure in figures:
            alt = figure.metadata["image/png"]["alt"]
            assert len(alt.split()) >= 6 and figure.data["text/plain"] == alt
            assert after.cell_type == "markdown"
            if not re.match(r"\*\*Figure \d+\.\*\*", after.source):
                pytest.fail(f"no interpretation follows {alt!r}")


def test_figures_are_numbered_in_order(text):
    numbers = [int(number) for number in re.findall(r"^\*\*Figure (\d+)\.\*\*", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers


def test_rhythm_of_prose_and_code(cells, code):
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert max(lengths) <= 40 and median(lengths) <= 8
    kinds = "".join(cell.cell_type[0] for cell in cells)  # m or c
    assert "ccc" not in kinds
    assert kinds.count("mc") / kinds.count("c") >= 0.85


@both
def test_code_is_as_wide_as_a_page(path, code):
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not [line for line in lines if len(line) > 80]


def test_opens_and_closes_like_the_others(cells, text):
    opening = cells[0].source
    assert opening.startswith("# ") and len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for part in ("**Question.**", "**You will see**", "**Needs**", "**Writes**", "**Time**"):
        assert part in opening
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings[-3:] == ["What we showed", "What can go wrong", "Exercises"]
    exercises = text.split("## Exercises")[1]
    for part in ("1. *Warm-up.*", "2. *Core.*", "3. *Open.*", "**Next:**"):
        assert part in exercises
    assert "> **Try it.**" in text


@both
def test_links_lead_somewhere(path, text):
    for target in re.findall(r"\]\(([^)#]+)\)|<img src=\"([^\"]+)\"", text):
        target = "".join(target)
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


# Notebooks 02 and 03 write the plain GAN and assert that the package's is equal.
WRITTEN_BY_THE_READER = {
    "02_models": {"Generator", "Discriminator"},
    "03_training": {"discriminator_loss", "generator_loss"},
}


def test_uses_only_public_names_and_redefines_none(path, code):
    tree = ast.parse("\n".join(cell.source for cell in code))
    used = set(package_names(tree))
    assert used and not [name for name in used if not is_public(name)]
    assert definitions(tree) & set(cg.__all__) == WRITTEN_BY_THE_READER.get(path.stem, set())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in imports if node.module.startswith("cgan_utils")]


def test_the_plain_gan_fits_into_forty_lines():
    """The reader's two losses, optimisers, step and loop, without blank lines and comments."""
    notebook = nbformat.read(CLONE / "notebooks" / "03_training.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parts = "def discriminator_loss", "torch.optim.Adam(G.", "def train_on", "order.split(32)"
    written = [c.source for c in code if any(part in c.source for part in parts)]
    assert len(written) == len(parts)
    lines = [line.strip() for source in written for line in source.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 40


def package_names(tree):
    """Yield "train" for each cg.train in a syntax tree, "tuned" and "tuned.x" for cg.tuned.x."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("cg"), name):
                yield name
            case ast.Attribute(ast.Attribute(ast.Name("cg"), module), name):
                if isinstance(getattr(cg, module, None), ModuleType):
                    yield f"{module}.{name}"


def is_public(name):
    """Tell whether a name is in `cg.__all__`, or is defined in a module that is."""
    module, _, inner = name.partition(".")
    if module not in cg.__all__ or not inner:
        return module in cg.__all__
    if inner.startswith("_") or not hasattr(getattr(cg, module), inner):
        return False
    value = getattr(getattr(cg, module), inner)
    home = getattr(value, "__module__", f"cgan_utils.{module}")  # a constant has no __module__
    return not isinstance(value, ModuleType) and home == f"cgan_utils.{module}"


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("cg.train", True),
        ("cg.tuned", True),
        ("cg.tuned.r1_penalty(x)", True),
        ("cg.tuned.R1_INTERVAL", True),
        ("cg.pretrained.load_record('tuned')['seed']", True),
        ("cg.no_such_name", False),
        ("cg.tuned.no_such_name", False),
        ("cg.tuned._norms", False),
        ("cg.load_checkpoint(path).no_such_name", True),
        ("cg.tuned.torch", False),
        ("cg.tuned.generator_step", False),  # of another module
        ("cg.training.train", False),
    ],
)
def test_public_names_are_told_from_others(source, public):
    names = list(package_names(ast.parse(source)))
    assert names and all(map(is_public, names)) is public


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_answer_every_exercise_and_check_the_answer(path, cells):
    headings = [heading for cell in cells for heading in re.findall(r"^## (.*)", cell.source, re.M)]
    assert headings == ["Try it", "1. Warm-up", "2. Core", "3. Open"]
    exercise, checked = None, set()
    for cell in cells:
        if heading := re.findall(r"^## (.*)", cell.source, re.MULTILINE):
            exercise = heading[-1]
        if cell.cell_type == "code" and re.search(r"^\s*assert ", cell.source, re.MULTILINE):
            checked.add(exercise)
    assert checked >= set(headings)
    assert f"(../{path.name.replace('_solutions', '')})" in cells[0].source


def test_notebooks_link_to_their_solutions(path, text):
    solutions = f"solutions/{path.stem}_solutions.ipynb"
    if (path.parent / solutions).exists():
        assert f"]({solutions})" in text.split("## Exercises")[1]


def test_nothing_is_defined_in_two_notebooks():
    owners = collections.defaultdict(set)
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for name in definitions(ast.parse(source)):
            owners[name].add(path.stem)
    assert not {name: where for name, where in owners.items() if len(where) > 1}


def printed(name):
    """Return everything that the cells of a notebook printed."""
    cells = nbformat.read(CLONE / "notebooks" / name, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def printed_bands(name):
    """Return {metric: (value, low, high)} of the lines "loss_d 0.6 expected 0.5 to 0.7"."""
    pattern = r"^(\w+) +(\S+) +(?:expected|ten runs) +(\S+) to +(\S+)"
    lines = re.findall(pattern, printed(name), re.MULTILINE)
    return {metric: tuple(map(float, numbers)) for metric, *numbers in lines}


def read_results(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_numbers_in_the_notebooks_fall_in_the_bands_of_the_results_file():
    results = read_results("quality.json")["original"]
    assert len(results["seeds"]) >= 3
    last_epoch = {name: epochs[-1] for name, epochs in results["history"].items()}
    found = printed_bands("03_training.ipynb")
    assert found.keys() == last_epoch.keys()
    for metric, (value, *band) in found.items():
        assert band == pytest.approx(last_epoch[metric]["band"], abs=6e-4)
        assert band[0] <= value <= band[1], metric


def test_the_measured_generator_is_one_of_its_recipe():
    runs = read_results("evaluation_sensitivity.json")["seeds"].values()
    found = printed_bands("05_evaluation.ipynb")
    assert found.keys() == METRICS.keys()
    outside = 0
    for metric, (value, low, high) in found.items():
        values = [run[metric] for run in runs]
        assert [low, high] == pytest.approx([min(values), max(values)], abs=6e-4)
        outside += not low <= value <= high
    assert outside <= 4


def test_each_fault_fails_as_in_the_results_file_and_unlike_the_healthy_run():
    results = read_results("failure_modes.json")
    assert len(results["seeds"]) >= 3
    pattern = r"^(\S.*?) +(\w+) +(\S+) +faulty +(\S+) +healthy +(\S+)"
    lines = re.findall(pattern, printed("07_failure_modes.ipynb"), re.MULTILINE)
    harmless = {"healthy", "saturating loss"}
    assert {name for name, *_ in lines} == set(results["runs"]) - harmless
    assert min(results["runs"]["saturating loss"]["gan_test"]) > 0.6
    for name, metric, *numbers in lines:
        value, faulty, healthy = map(float, numbers)
        runs = [results["runs"][which][metric] for which in (name, "healthy")]
        assert [faulty, healthy] == pytest.approx([fmean(run) for run in runs], abs=6e-4)
        border = (faulty + healthy) / 2
        assert len({each < border for each in (value, *runs[0])}) == 1, name
        assert len({each < border for each in (healthy, *runs[1])}) == 1, name
        assert (value < border) != (healthy < border), name


def definitions(tree):
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}

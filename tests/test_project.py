"""The files around the package agree with each other."""

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import resolve_name
from pathlib import Path

import pytest
import yaml

import cgan_utils as cg

pytestmark = pytest.mark.slow  # reads every file of the project

CLONE = Path(__file__).resolve().parents[1]
PACKAGE = CLONE / "cgan_utils"
PYPROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, PYTEST = PYPROJECT["project"], PYPROJECT["tool"]["pytest"]["ini_options"]


def test_environment_states_no_dependency_twice():
    environment = yaml.safe_load(read("environment.yml"))
    python, pip, from_pip = environment["dependencies"]
    assert python == "python" + PROJECT["requires-python"] and pip == "pip"
    (editable,) = from_pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable)[1].split(",")
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"])


def test_every_dependency_says_why():
    lines = read("pyproject.toml").splitlines()
    extras = PROJECT["optional-dependencies"].values()
    needs = [*PROJECT["dependencies"], *(need for extra in extras for need in extra)]
    for need in needs:
        (line,) = [line for line in lines if line.strip().startswith(f'"{need}"')]
        assert "#" in line or need.startswith("pytest>"), line


def test_readme_names_real_targets_and_notebooks():
    readme = read("README.md")
    assert {"run", "test", "lab", "notebooks", "help"} <= targets_named_in(readme)
    notebooks = {path.name for path in (CLONE / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"notebooks/(\w+\.ipynb)", readme)) == notebooks
    for alt in re.findall(r"!\[(.*?)\]", readme):
        assert len(alt.split()) >= 6


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_targets_scripts_and_links_exist(name):
    document = read(name)
    targets = re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)
    assert targets_named_in(document) <= set(targets)
    for path in re.findall(r"\w+/[\w/]+\.(?:py|md)\b", document):
        assert (CLONE / path).exists(), path
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document):
        assert target.startswith("http") or (CLONE / target).exists(), target


def read(name):
    return (CLONE / name).read_text(encoding="utf-8")


def targets_named_in(document):
    return set(re.findall(r"(?:^|`)make ([a-z-]+)", document, re.MULTILINE))


def test_contributing_explains_every_marker_and_benchmark():
    first_cells = re.findall(r"^\| (`.*?`) \|", read("CONTRIBUTING.md"), re.MULTILINE)
    explained = set(re.findall(r"`(.*?)`", " ".join(first_cells)))
    markers = {marker.split(":")[0] for marker in PYTEST["markers"]}
    assert explained == markers | {path.name for path in (CLONE / "benchmarks").glob("*.py")}


def test_modules_in_the_readme_are_those_of_the_package():
    table = read("README.md").split("| module |")[1].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {name.split(".")[0] for name in modules() if not name.startswith("_")}


def test_metrics_in_the_readme_are_those_of_the_results_file():
    results = json.loads(read("benchmarks/results/quality.json"))
    names = ("gan_test", "gan_train", "frechet", "coverage", "diversity")
    for recipe, result in results.items():
        seeds = len(result["seeds"])
        assert seeds >= 3
        ((row, real),) = re.findall(
            rf"^\| {recipe} \({seeds} seeds\) \|(.*)\|\n\| real images, same classifier \|(.*)\|$",
            read("README.md"),
            re.MULTILINE,
        )
        for name, cell, real_cell in zip(names, row.split("|"), real.split("|"), strict=True):
            digits = 1 if name == "frechet" else 3
            metric = result["metrics"][name]
            assert cell.strip() == f"{metric['mean']:.{digits}f} ± {metric['std']:.{digits}f}"
            assert real_cell.strip() == f"{result['real'][name]:.{digits}f}"


def test_workflow_runs_the_same_command_as_ci():
    commands = [step.get("run") for step in workflow_job()["steps"]]
    assert "make test" in commands
    assert read(".ci/run").strip().endswith("make test")


def test_workflow_tests_the_lowest_versions_and_the_latest():
    lowest, latest = workflow_job()["strategy"]["matrix"]["include"]
    assert PROJECT["requires-python"] == f">={lowest['python-version']}"
    for constraint in lowest["constraints"].split():
        assert constraint.replace("==", ">=").removesuffix(".*") in PROJECT["dependencies"]
    assert "torch==" in lowest["constraints"]
    assert latest["constraints"] == ""


def workflow_job():
    return yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]


def test_pages_publishes_what_make_book_builds():
    workflow = yaml.safe_load(read(".github/workflows/pages.yml"))
    assert workflow[True] == {"push": {"branches": ["main"]}}  # YAML 1.1 reads "on" as True
    steps = workflow["jobs"]["book"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make book"]
    (site,) = re.findall(r"^SITE := (.*)$", read("Makefile"), re.MULTILINE)
    (upload,) = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert upload["with"] == {"path": site}
    assert steps[-1]["uses"].startswith("actions/deploy-pages@")


def test_binder_finds_the_package_and_a_python_that_it_allows():
    """By repo2docker's rules: `binder/` alone counts, and there an environment.yml would win."""
    assert {path.name for path in (CLONE / "binder").iterdir()} == {
        "requirements.txt",
        "runtime.txt",
    }
    version = re.fullmatch(r"python-3\.(\d+)", read("binder/runtime.txt").strip())[1]
    assert int(version) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    lines = [line for line in read("binder/requirements.txt").splitlines() if line[0] != "#"]
    *options, package = lines  # pip runs in the clone, once all of it is there: -e is local
    assert all(option.startswith("--extra-index-url https://") for option in options)
    assert re.fullmatch(r"-e \.\[(\w+)\]", package)[1] in PROJECT["optional-dependencies"]


def test_pre_commit_runs_a_ruff_that_the_project_allows():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    (need,) = [need for need in PROJECT["optional-dependencies"]["test"] if "ruff" in need]
    lowest, used = need.removeprefix("ruff>="), repository["rev"].removeprefix("v")
    assert [int(n) for n in lowest.split(".")] <= [int(n) for n in used.split(".")]
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]
    assert all("jupyter" in hook["types_or"] for hook in repository["hooks"])


def test_citation_file_has_what_the_format_requires():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert reference["url"] in read("README.md")


# Each module imports only from those before it.
ORDER = (
    "_checks",
    "_runtime",
    "config",
    "arrays",
    "images",
    "fashion_mnist",
    "data",
    "models",
    "state",
    "checkpoints",
    "engines.lowerings",
    "engines.codegen",
    "engines.eager",
    "engines.threads",
    "engines.traced",
    "engines.compiled",
    "engines.cuda_graph",
    "engines.inductor",
    "engines.distributed",
    "engines",
    "sampling",
    "diagnosis",
    "training",
    "classifier",
    "evaluation",
    "plotting",
    "pretrained",
    "tuned",
    "__init__",
    "__main__",
)


def test_imports_run_one_way():
    assert set(ORDER) == modules()
    for position, module in enumerate(ORDER):
        assert imported_by(module) <= set(ORDER[:position]), module


def test_the_tuned_recipe_is_an_add_on():
    assert [module for module in ORDER if "tuned" in imported_by(module)] == ["__init__"]


def test_engines_know_no_recipe_and_plotting_no_network():
    engines = [module for module in ORDER if module.startswith("engines")]
    for module in engines:
        assert imported_by(module) <= set(engines), module
    assert imported_by("plotting") <= {"_checks", "config"}


def modules():
    """The package's modules by their names inside it; a subpackage has the name of its folder."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def imported_by(module):
    """The modules of the package that one of them imports."""
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = ".".join(path.relative_to(CLONE).parent.parts)
    names = imports(path.read_text(encoding="utf-8"))
    ours = {resolve_name(name, package) for name in names if is_ours(name)}
    return {name.removeprefix("cgan_utils").removeprefix(".") or "__init__" for name in ours}


def is_ours(name):
    return name.startswith((".", "cgan_utils"))


def imports(source):
    """Yield what a file imports anywhere, as it is written: os.path, .config, cgan_utils.data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from [origin] if node.module else [origin + alias.name for alias in node.names]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from .engines import Eager", ".engines"),
        ("from . import engines", ".engines"),
        ("def f():\n    from .engines import Eager", ".engines"),
        ("import os, cgan_utils.engines", "cgan_utils.engines"),
        ("from cgan_utils.engines import Eager", "cgan_utils.engines"),
    ],
)
def test_imports_are_seen_however_they_are_written(source, name):
    assert name in imports(source)


@pytest.mark.parametrize("folder", ["cgan_utils", "benchmarks", "tests"])
def test_every_import_is_a_declared_dependency(folder):
    needs, files = PROJECT["dependencies"], list((CLONE / folder).rglob("*.py"))
    beside = {path.stem for path in files}
    if folder != "cgan_utils":
        extras = PROJECT["optional-dependencies"].values()
        needs = needs + [need for extra in extras for need in extra]
        for each in PYTEST["pythonpath"]:
            beside |= {path.stem for path in (CLONE / each).glob("*.py")}
    declared = {re.match(r"[\w-]+", need)[0] for need in needs}
    known, owners = sys.stdlib_module_names | beside, packages_distributions()
    for path in files:
        for name in imports(path.read_text(encoding="utf-8")):
            top = name.split(".")[0]
            if not is_ours(name) and top not in known:
                packages = {owner.lower().replace("_", "-") for owner in owners[top]}
                assert packages & declared, f"{path.name} imports {top}"


@pytest.mark.process
def test_help_lists_the_targets():
    listed = subprocess.run(["make", "help"], cwd=CLONE, capture_output=True, text=True).stdout
    assert {"run", "test", "lab"} <= {line.split()[0] for line in listed.splitlines()}


@pytest.mark.process
@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_make_uses_an_active_environment_that_has_the_package(variable, tmp_path):
    """Also where its path or the clone's has spaces and quotes."""

    def program(environment, clone=CLONE):
        others = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
        run = subprocess.run(
            ["make", "-n", "test-quick"],
            cwd=clone,
            env=others | {variable: str(environment)},
            capture_output=True,
            text=True,
        )
        # Below `make test`, make also prints the folder, whose name may have "pytest" in it.
        (line,) = [line for line in run.stdout.splitlines() if "-m pytest" in line]
        return shlex.split(line)[0]

    assert program(sys.prefix) == f"{sys.prefix}/bin/python"
    assert program(tmp_path) == ".venv/bin/python"  # active, but without the package
    environment, clone = tmp_path / "my env", tmp_path / "it's a clone"
    environment.symlink_to(sys.prefix)
    assert program(environment) == f"{environment}/bin/python"
    clone.mkdir()
    shutil.copy(CLONE / "Makefile", clone)
    shutil.copy(CLONE / "pyproject.toml", clone)
    assert program(environment, clone) == ".venv/bin/python"  # another clone's


LATER = r"tuned|\bema|r1|projection|matching|engine|compile|processes|check_"  # words


PLAIN = (
    cg.Generator,
    cg.Discriminator,
    cg.discriminator_loss,
    cg.generator_loss,
    cg.discriminator_step,
    cg.generator_step,
    cg.training_step,
    cg.sample_batch,
    cg.train_epoch,
)


@pytest.mark.parametrize("thing", PLAIN, ids=lambda thing: thing.__name__)
def test_what_the_reader_writes_too_speaks_of_the_plain_gan_alone(thing):
    assert not re.findall(LATER, inspect.getsource(thing), re.IGNORECASE)

"""The files around the package agree with each other."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import mutation
import pytest
import yaml

CLONE = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_environment_states_no_dependency_twice():
    environment = yaml.safe_load((CLONE / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    assert python == "python" + PROJECT["requires-python"] and pip == "pip"
    (editable,) = from_pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable)[1].split(",")
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"])


def test_every_dependency_says_why():
    lines = (CLONE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    extras = PROJECT["optional-dependencies"].values()
    needs = [*PROJECT["dependencies"], *(need for extra in extras for need in extra)]
    for need in needs:
        (line,) = [line for line in lines if line.strip().startswith(f'"{need}"')]
        assert "#" in line or need.startswith("pytest>"), line


def test_readme_names_real_targets_and_notebooks():
    readme = (CLONE / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", (CLONE / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"run", "test", "lab", "notebooks", "help"} <= named <= set(targets)
    notebooks = {path.name for path in (CLONE / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"notebooks/(\w+\.ipynb)", readme)) == notebooks
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (CLONE / target).exists(), target
    for alt in re.findall(r"!\[(.*?)\]", readme):
        assert len(alt.split()) >= 6


def test_figures_in_the_readme_are_those_of_the_results_file():
    text = (CLONE / "tests/benchmarks/results/quality.json").read_text(encoding="utf-8")
    results = json.loads(text)
    readme = (CLONE / "README.md").read_text(encoding="utf-8")
    names = ("gan_test", "gan_train", "frechet", "coverage", "diversity")
    for recipe, result in results.items():
        assert len(result["seeds"]) >= 3
        seeds = len(result["seeds"])
        ((row, real),) = re.findall(
            rf"^\| {recipe} \({seeds} seeds\) \|(.*)\|\n\| real pictures, by its judge \|(.*)\|$",
            readme,
            re.M,
        )
        for name, cell, ceiling in zip(names, row.split("|"), real.split("|"), strict=True):
            digits = 1 if name == "frechet" else 3
            figure = result["figures"][name]
            assert cell.split() == [
                f"{figure['mean']:.{digits}f}",
                "±",
                f"{figure['std']:.{digits}f}",
            ]
            assert ceiling.strip() == f"{result['real'][name]:.{digits}f}"


def test_workflow_runs_the_same_command_as_ci():
    workflow = yaml.safe_load((CLONE / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    commands = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert "make test" in commands
    assert (CLONE / ".ci/run").read_text(encoding="utf-8").strip().endswith("make test")


def test_imports_run_one_way():
    order = [
        "config",
        "data",
        "models",
        "pretrained/__init__",
        "checkpoints",
        "compiler",
        "engines",
        "training",
        "sampling",
        "judge",
        "evaluation",
    ]
    for position, module in enumerate(order):
        assert imported_by(module) <= set(order[:position]), module
    assert imported_by("plotting") == {"config"}  # it draws tensors and knows none of the others


def imported_by(module):
    """The modules of the package that one of them imports."""
    names = imports((CLONE / "cgan_utils" / f"{module}.py").read_text(encoding="utf-8"))
    return {name.removeprefix("cgan_utils").strip(".") for name in names if is_ours(name)}


def is_ours(name):
    return name.startswith((".", "cgan_utils"))


def imports(source):
    """What is imported anywhere in a file, as it is written: os.path, .config, cgan_utils.data."""
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


@pytest.mark.parametrize("folder", ["cgan_utils", "tests"])
def test_every_import_is_a_declared_dependency(folder):
    needs = PROJECT["dependencies"]
    if folder == "tests":
        needs = needs + [
            need for extra in PROJECT["optional-dependencies"].values() for need in extra
        ]
    declared = {re.match(r"[\w-]+", need)[0] for need in needs}
    owners = packages_distributions()
    files = list((CLONE / folder).rglob("*.py"))
    known = sys.stdlib_module_names | {path.stem for path in files}
    for path in files:
        for name in imports(path.read_text(encoding="utf-8")):
            top = name.split(".")[0]
            if not is_ours(name) and top not in known:
                packages = {owner.lower().replace("_", "-") for owner in owners[top]}
                assert packages & declared, f"{path.name} imports {top}"


def test_help_lists_the_targets():
    listed = subprocess.run(["make", "help"], cwd=CLONE, capture_output=True, text=True).stdout
    assert {"run", "test", "lab"} <= {line.split()[0] for line in listed.splitlines()}


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_make_uses_an_active_environment_that_has_the_package(variable, tmp_path):
    def program(environment):
        others = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
        run = subprocess.run(
            ["make", "-n", "test-quick"],
            cwd=CLONE,
            env=others | {variable: str(environment)},
            capture_output=True,
            text=True,
        )
        (line,) = [line for line in run.stdout.splitlines() if "pytest" in line]
        return line.split()[0]

    assert program(sys.prefix) == f"{sys.prefix}/bin/python"
    assert program(tmp_path) == ".venv/bin/python"  # active, but without the package


def test_every_planted_fault_has_its_place():
    """A fault whose line was changed would only be missed by who runs all of them."""
    for module, faults in mutation.FAULTS.items():
        source = (CLONE / "cgan_utils" / f"{module}.py").read_text(encoding="utf-8")
        assert not [old for old, _ in faults if old not in source], module

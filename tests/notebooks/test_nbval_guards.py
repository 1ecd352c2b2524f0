"""nbval, run as `make test` runs it, fails when the package or a stored output changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path):
    """Copy the package and notebook 02, which nbval runs with that package."""
    shutil.copytree(CLONE / "cgan_utils", tmp_path / "cgan_utils")
    shutil.copy(CLONE / "notebooks" / "02_models.ipynb", tmp_path)
    return tmp_path


def replace(path, old, new):
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


def nbval(clone):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "02_models.ipynb"],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone), "PYTEST_ADDOPTS": ""},  # the caller's options
        capture_output=True,
        text=True,
    )


def test_fails_where_a_layer_of_the_package_or_a_stored_output_changes_and_nowhere_else(clone):
    replace(clone / "cgan_utils" / "models.py", "nn.LeakyReLU(0.2)", "nn.LeakyReLU(0.3)")
    replace(clone / "02_models.ipynb", "(3, 100) + (3, 10) -> (3, 110)", "(3, 100) + (3, 10)")
    run = nbval(clone)
    assert run.returncode == 1 and "\n2 failed, " in run.stdout
    assert "packaged(noise, all_labels)" in run.stdout and "(3, 110)" in run.stdout


def test_fails_when_a_size_of_the_package_changes(clone):
    replace(clone / "cgan_utils" / "config.py", "hidden_dim: int = 256", "hidden_dim: int = 255")
    run = nbval(clone)
    assert run.returncode == 1 and "packaged(z, labels)" in run.stdout

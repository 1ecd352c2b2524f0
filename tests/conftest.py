"""Fixtures for all tests, and nbval's settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_emulation
import pytest
import torch
from filelock import FileLock
from playwright.sync_api import sync_playwright

import cgan_utils as cg

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):  # nbval's, 5 s, too short for a busy machine
            item.output_timeout = 60


@pytest.fixture(autouse=True)
def same_random_numbers():
    """In each run and order of the tests: one that fails once in a hundred runs tells nothing."""
    torch.manual_seed(0)


@pytest.fixture
def cuda(monkeypatch):
    """Emulated CUDA graphs, of tensors on the CPU."""
    cuda = cuda_emulation.EmulatedCUDA()
    for name in cuda_emulation.PATCHED:
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name), raising=False)
    return cuda


@pytest.fixture(scope="session")
def book(tmp_path_factory, worker_id):
    """The folder of the built site, which the first worker of xdist's to need it builds for all."""
    folder = tmp_path_factory.getbasetemp()  # of this worker, in a folder of them all
    site = (folder if worker_id == "master" else folder.parent) / "site"
    built = site.with_name("built")
    with FileLock(f"{site}.lock"):
        if not built.exists():
            run = subprocess.run(
                ["make", "book", f"SITE={site}"],
                cwd=Path(__file__).resolve().parents[1],
                env=os.environ | {"VIRTUAL_ENV": sys.prefix},
                capture_output=True,
                text=True,
            )
            assert run.returncode == 0, run.stdout + run.stderr
            built.touch()
    return site


@pytest.fixture(scope="module")
def browser():
    """A Chromium that the machine has, driven by Playwright, which downloads none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = "there is no Chromium; install one, for instance with `apt-get install chromium`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tiny_config():
    """Networks small enough that a test trains them in a moment."""
    return cg.CGANConfig(
        classes=("dark", "bright", "striped"),
        image_shape=(1, 8, 8),
        embedding_dim=4,
        latent_dim=6,
        hidden_dim=16,
        epochs=2,
        batch_size=16,
    )


@pytest.fixture
def tiny_data(tiny_config):
    """54 random images, 18 of each of three classes: three whole batches of 16 and one of 6."""
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (54, 1, 8, 8), dtype=torch.uint8, generator=numbers)
    return cg.LabelledImages(images, torch.arange(54) % 3, tiny_config.classes)


@pytest.fixture
def batch(tiny_config, tiny_data):
    """images, labels, z, fake_labels of one step; real and fake labels differ everywhere."""
    images, labels = cg.normalize(tiny_data.images[:16]), tiny_data.labels[:16]
    z = cg.sample_latent(16, tiny_config.latent_dim, seed=1)
    return images, labels, z, (labels + 1) % 3

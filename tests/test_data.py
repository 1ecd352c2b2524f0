"""What cgan_utils.data promises, held against torchvision's reader and published facts."""

import contextlib
import gzip
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torchvision

from cgan_utils import data as module
from cgan_utils.config import FASHION_MNIST_CLASSES, data_folder
from cgan_utils.data import LabelledImages, load_fashion_mnist, normalize

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "t10k": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}


# --- the real data, and the sources it could come from -------------------------------------------


@pytest.fixture(scope="session")
def real():
    """Both splits, as a reader gets them; fetched once if this machine has none yet."""
    return {split: load_fashion_mnist(split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def packed(real, tmp_path_factory):
    """A folder with the four real files, gzipped: what a mirror or a system copy looks like."""
    folder = tmp_path_factory.mktemp("packed")
    for name in NAMES:
        content = (data_folder() / "FashionMNIST" / "raw" / name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    return folder


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """A folder with files that have MNIST's names, headers, sizes and label counts."""
    folder = tmp_path_factory.mktemp("mnist")
    for prefix, counts in MNIST_COUNTS.items():
        size = sum(counts).to_bytes(4)
        images = b"\0\0\x08\x03" + size + b"\0\0\0\x1c" * 2 + bytes(sum(counts) * 28 * 28)
        labels = b"\0\0\x08\x01" + size
        labels += b"".join(bytes([label]) * count for label, count in enumerate(counts))
        for name, content in ("images-idx3", images), ("labels-idx1", labels):
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(content, compresslevel=1))
    return folder


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """No source has anything; a test then opens the one it is about. Returns an empty folder."""
    for name in "empty", "scratch":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "no system copy")
    monkeypatch.setattr(module, "MIRRORS", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # no apt-get
    monkeypatch.setenv("no_proxy", "*")
    yield tmp_path / "data"
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def serve():
    """serve(folder) answers with its files, serve(folder, sent) with what sent() makes of them."""
    servers = []

    def start(folder, send=lambda handler, body: handler.wfile.write(body)):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                path = folder / self.path.lstrip("/")
                if not path.exists():
                    return self.send_error(404)
                body = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has enough
                    send(self, body)

            def log_message(self, *args):
                pass

        asked = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


def assert_loads(folder, real):
    """`folder` gives the real data, and then holds the four files and nothing else."""
    for split in real:
        loaded = load_fashion_mnist(split, folder)
        assert torch.equal(loaded.images, real[split].images)
        assert torch.equal(loaded.labels, real[split].labels)
    assert files_in(folder) == sorted(NAMES)
    raw = Path("FashionMNIST", "raw")
    for name in NAMES:
        assert (folder / raw / name).read_bytes() == (data_folder() / raw / name).read_bytes()


# --- the dataset ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "size"), [("train", 60_000), ("test", 10_000)])
def test_shapes_types_and_balanced_classes(real, split, size):
    loaded = real[split]
    assert len(loaded) == size
    assert loaded.images.shape == (size, 1, 28, 28)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)
    assert loaded.labels.bincount().tolist() == [size // 10] * 10
    assert loaded.classes == FASHION_MNIST_CLASSES


def test_published_facts_of_the_training_set(real):
    assert real["train"].classes[real["train"].labels[0]] == "Ankle boot"
    pixels = real["train"].images.flatten().bincount(minlength=256) / real["train"].images.numel()
    grey = torch.arange(256) / 255
    mean = (grey * pixels).sum()
    assert mean.item() == pytest.approx(0.2860, abs=5e-5)
    assert ((grey - mean) ** 2 * pixels).sum().sqrt().item() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same_from_the_same_folder(real, split):
    theirs = torchvision.datasets.FashionMNIST(data_folder(), train=split == "train")
    assert torch.equal(real[split].images.squeeze(1), theirs.data)
    assert torch.equal(real[split].labels, theirs.targets)
    assert list(real[split].classes) == theirs.classes


def test_default_folder_is_the_configured_one(real, isolated, packed, monkeypatch):
    monkeypatch.setenv("CGAN_DATA_DIR", str(isolated))
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    load_fashion_mnist()
    assert files_in(isolated / "FashionMNIST" / "raw") == sorted(NAMES)


@pytest.mark.parametrize("split", ["training", "Train", "", 0, None, ["train"]])
def test_unknown_split(split):
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got"):
        load_fashion_mnist(split)


# --- normalize -----------------------------------------------------------------------------------


def test_normalize_is_torchvisions_bit_for_bit(real):
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    )
    theirs = torchvision.datasets.FashionMNIST(data_folder(), transform=transform)
    expected = torch.stack([theirs[i][0] for i in range(500)])
    assert torch.equal(normalize(real["train"].images[:500]), expected)


def test_normalize_every_grey_value():
    grey = torch.arange(256, dtype=torch.uint8)
    before = grey.clone()
    values = normalize(grey)
    assert values.dtype == torch.float32
    assert (values[0], values[255]) == (-1, 1)
    assert (values.diff() > 0).all()
    assert torch.equal(((values + 1) / 2 * 255).round().to(torch.uint8), grey)
    assert torch.equal(grey, before)


@pytest.mark.parametrize("images", [torch.zeros(2, 3), torch.zeros(2).long(), [0, 255], None])
def test_normalize_takes_uint8_only(images):
    with pytest.raises(TypeError, match="images must be a uint8 tensor; got a "):
        normalize(images)


# --- LabelledImages ------------------------------------------------------------------------------


def labelled(images=None, labels=None, classes=("cat", "dog")):
    images = torch.zeros(3, 3, 5, 4, dtype=torch.uint8) if images is None else images
    return LabelledImages(images, torch.tensor([0, 1, 1]) if labels is None else labels, classes)


def test_any_images_will_do():
    pets = labelled()
    assert len(pets) == 3
    with pytest.raises(AttributeError):
        pets.labels = torch.tensor([0, 0, 0])


def test_subsets(real):
    train = real["train"]
    order = torch.tensor([5, 0, 5])
    for indices in order, order.tolist(), slice(7), train.labels == 3:
        part = train[indices]
        assert isinstance(part, LabelledImages)
        assert torch.equal(part.images, train.images[indices])
        assert torch.equal(part.labels, train.labels[indices])
        assert part.classes == train.classes
    for nothing in 0, slice(0), train.labels == 10:
        with pytest.raises(ValueError, match="images must have shape"):
            train[nothing]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"images": [[0]]}, TypeError, r"images must be a torch.uint8 tensor .*got a list"),
        ({"images": torch.zeros(3, 1, 2, 2)}, TypeError, "images must .*got a torch.float32"),
        ({"images": torch.zeros(3, 2, 2).byte()}, ValueError, r"images must .*got \(3, 2, 2\)"),
        ({"images": torch.zeros(3, 1, 0, 2).byte()}, ValueError, "images must .*not empty"),
        ({"images": torch.zeros(0, 1, 2, 2).byte()}, ValueError, "images must .*not empty"),
        ({"images": torch.zeros(2, 1, 2, 2).byte()}, ValueError, "got 3 labels for 2 images"),
        ({"labels": [0, 1, 1]}, TypeError, "labels must be a torch.int64 tensor .*got a list"),
        ({"labels": torch.tensor([0, 1, 1]).int()}, TypeError, "labels must .*got a torch.int32"),
        ({"labels": torch.tensor([[0], [1], [1]])}, ValueError, r"labels must .*got \(3, 1\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "got 2 labels for 3 images"),
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"labels must lie in 0..1; got 0..2"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, r"labels must lie in .*got -1..1"),
        ({"classes": ["cat", "dog"]}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": ("cat", 1)}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": "ab"}, TypeError, "classes must be a tuple of str; got"),
        ({"classes": ("cat",)}, ValueError, r"labels must lie in 0..0; got 0..1"),
    ],
)
def test_images_labels_and_classes_must_fit(wrong, error, message):
    with pytest.raises(error, match=message):
        labelled(**wrong)


# --- each source ---------------------------------------------------------------------------------


def test_data_folder_is_read_and_left_alone(real, isolated):
    raw = isolated / "FashionMNIST" / "raw"
    shutil.copytree(data_folder() / "FashionMNIST" / "raw", raw)
    before = {path: path.stat() for path in sorted(raw.iterdir())}
    assert_loads(isolated, real)
    after = {path: path.stat() for path in sorted(raw.iterdir())}
    for path in before:
        assert before[path].st_ino == after[path].st_ino
        assert before[path].st_mtime_ns == after[path].st_mtime_ns


def test_gzipped_files_put_there_by_hand(real, isolated, packed):
    raw = isolated / "FashionMNIST" / "raw"
    shutil.copytree(packed, raw)
    load_fashion_mnist("test", isolated)
    for name in NAMES:  # torchvision needs them unpacked
        (raw / f"{name}.gz").unlink()
    assert_loads(isolated, real)


def test_system_copy(real, isolated, packed, monkeypatch, caplog):
    assert Path("/usr/share/datasets/fashion-mnist") == Path("/", module.PACKAGED_FOLDER)
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    caplog.set_level("INFO", logger="cgan_utils.data")
    assert_loads(isolated, real)
    assert f"system copy {packed}" in caplog.messages[0]
    assert "data folder" in caplog.messages[1]


def test_torchvisions_downloader_and_its_silence(real, isolated, packed, serve, monkeypatch, capfd):
    url, asked = serve(packed)
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:1/", url))  # the first one refuses
    assert_loads(isolated, real)
    assert {path.lstrip("/") for path in asked} == {f"{name}.gz" for name in NAMES}
    assert capfd.readouterr() == ("", "")


def test_https_mirrors_come_before_torchvisions_own():
    *ours, theirs = module.MIRRORS
    assert len(ours) == 2
    assert all(mirror.startswith("https://") for mirror in ours)
    assert [theirs] == torchvision.datasets.FashionMNIST.mirrors
    assert all(mirror.endswith("/") for mirror in module.MIRRORS)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get and its archive")
def test_apt_get_on_a_machine_in_disorder(real, isolated, tmp_path, serve, monkeypatch, capfd):
    sources = shutil.copytree("/etc/apt/sources.list.d", tmp_path / "sources")
    url, _ = serve(tmp_path / "empty")  # an archive without packages makes `update` fail
    (sources / "broken.list").write_text(f"deb {url} broken main\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourceparts "{sources}"; Dir::State "/dev/null/x"; Dir::Cache "/dev/null/x";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("PATH", os.defpath + ":/usr/sbin:/sbin")
    assert_loads(isolated, real)
    assert capfd.readouterr() == ("", "")


# --- each failure --------------------------------------------------------------------------------


def test_no_source_at_all(isolated, monkeypatch):
    mirrors = ("http://127.0.0.1:1/", "http://no-such-host.invalid/")
    monkeypatch.setattr(module, "MIRRORS", mirrors)
    with pytest.raises(RuntimeError, match=r"FashionMNIST was not found") as error:
        load_fashion_mnist("train", isolated)
    message = str(error.value)
    tried = [line for line in message.splitlines() if line.startswith("  - ")]
    for line, *parts in zip(
        tried,
        (f"data folder {isolated}", "system copy", mirrors[0], mirrors[1], "apt-get"),
        ("is missing", "is missing", "Connection refused", "urlopen error", "is not installed"),
        strict=True,
    ):
        assert all(part in line for part in parts), line
    for remedy in (*NAMES, str(isolated / "FashionMNIST" / "raw"), "CGAN_DATA_DIR", "install"):
        assert remedy in message.splitlines()[-1]
    assert files_in(isolated) == []


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip_a_byte, "train-images-idx3-ubyte"),
        (cut_in_half, "t10k-images-idx3-ubyte"),
        (cut_in_half, "t10k-labels-idx1-ubyte"),
        (Path.unlink, "train-labels-idx1-ubyte"),
    ],
)
def test_damaged_file_in_the_folder_is_replaced(real, isolated, packed, name, damage, monkeypatch):
    raw = isolated / "FashionMNIST" / "raw"
    shutil.copytree(data_folder() / "FashionMNIST" / "raw", raw)
    damage(raw / name)
    with pytest.raises(RuntimeError, match=f"data folder {isolated}.*{name} is (damaged|missing)"):
        load_fashion_mnist("train", isolated)
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    assert_loads(isolated, real)


@pytest.mark.parametrize("damage", [flip_a_byte, cut_in_half], ids=lambda f: f.__name__)
def test_damaged_gzip_in_the_system_copy(isolated, packed, tmp_path, damage, monkeypatch):
    system = shutil.copytree(packed, tmp_path / "system")
    damage(system / "train-labels-idx1-ubyte.gz")
    monkeypatch.setattr(module, "SYSTEM_FOLDER", system)
    with pytest.raises(RuntimeError, match=r"system copy .*: train-labels-idx1-ubyte (cannot|is)"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


def test_mnist_in_the_folder_is_refused_by_name_and_kept(isolated, packed, mnist, monkeypatch):
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    raw = shutil.copytree(mnist, isolated / "FashionMNIST" / "raw")
    before = files_in(isolated)
    for split in "train", "test":
        with pytest.raises(RuntimeError, match="is MNIST's file, not FashionMNIST's") as error:
            load_fashion_mnist(split, isolated)
        assert str(raw) in str(error.value)
    for path in raw.glob("train-*"):  # half of it is enough
        path.unlink()
    with pytest.raises(RuntimeError, match="t10k-labels-idx1-ubyte is MNIST's file"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == [name for name in before if name.startswith("t10k")]


def test_mirror_that_serves_mnist(isolated, mnist, serve, monkeypatch):
    url, _ = serve(mnist)
    monkeypatch.setattr(module, "MIRRORS", (url,))
    with pytest.raises(RuntimeError, match=f"{url}: train-labels-idx1-ubyte is MNIST's file"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


def test_download_cut_half_way(isolated, packed, serve, monkeypatch):
    def half(handler, body):
        handler.wfile.write(body[: len(body) // 2])

    url, _ = serve(packed, half)
    monkeypatch.setattr(module, "MIRRORS", (url,))
    with pytest.raises(RuntimeError, match=f"{url}: .*ended before"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


def test_server_that_never_answers(isolated, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert_given_up(url, "SILENCE_SECONDS", "timed out", isolated, monkeypatch)


def test_server_that_never_ends(isolated, packed, serve, monkeypatch):
    def trickle(handler, body):
        for i in range(200):
            handler.wfile.write(body[i : i + 1])
            time.sleep(0.1)

    url, _ = serve(packed, trickle)
    assert_given_up(url, "STEP_SECONDS", "took more than 2 seconds", isolated, monkeypatch)


def assert_given_up(url, limit, reason, folder, monkeypatch):
    monkeypatch.setattr(module, "MIRRORS", (url,))
    monkeypatch.setattr(module, "STEP_SECONDS", 15)
    monkeypatch.setattr(module, limit, 2)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=f"{url}: .*{reason}"):
        load_fashion_mnist("train", folder)
    assert time.monotonic() - start < 20
    assert files_in(folder) == []


@pytest.mark.parametrize("place", ["below a file", "/proc/cgan-data", "read-only"])
def test_folder_that_cannot_be_written(isolated, packed, place, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    folder = Path(place)
    if place == "below a file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "data"
    elif place == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder = tmp_path / "read-only"
        folder.mkdir(mode=0o500)
    elif not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    with pytest.raises(RuntimeError, match="Cannot write to the data folder") as error:
        load_fashion_mnist("train", folder)
    assert str(folder) in str(error.value)
    assert "CGAN_DATA_DIR" in str(error.value)


def test_file_is_replaced_whole_under_its_readers(isolated, packed, monkeypatch):
    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    damaged = isolated / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half a file")
    with open(damaged, "rb") as reader:
        load_fashion_mnist("test", isolated)
        assert reader.read() == b"half a file"


def test_disk_full_half_way_leaves_nothing(isolated, packed, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "SYSTEM_FOLDER", packed)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match=r"Cannot write .*No space left"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


def test_two_processes_at_once(real, isolated, packed, tmp_path):
    script = """if True:
        import pathlib, sys, time
        from cgan_utils import data
        packed, folder, go = map(pathlib.Path, sys.argv[1:])
        data.SYSTEM_FOLDER = packed
        print("ready", flush=True)
        while not go.exists():
            time.sleep(0.001)
        print(len(data.load_fashion_mnist("train", folder)))
    """
    command = [sys.executable, "-c", script, packed, isolated, tmp_path / "go"]
    root = Path(module.__file__).parents[1]
    processes = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "60000\n")
    assert_loads(isolated, real)

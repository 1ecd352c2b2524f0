"""Where FashionMNIST's files come from: each source, and each way in which it can fail."""

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

from cgan_utils import data_folder, fashion_mnist, load_fashion_mnist

pytestmark = pytest.mark.slow  # reads and writes the dataset's files many times

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
    """Both splits; downloaded if this machine has none yet."""
    return {split: load_fashion_mnist(split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def compressed(real, tmp_path_factory):
    """A folder with the four real files, gzipped, as a mirror or a system copy has them."""
    folder = tmp_path_factory.mktemp("compressed")
    for name in NAMES:
        content = (data_folder() / "FashionMNIST" / "raw" / name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    return folder


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """A folder of files with MNIST's names, headers, sizes and label counts."""
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
    """Close every source; a test opens the one it is about. Yields a data folder to create."""
    for name in "empty", "scratch":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "no system copy")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # no apt-get
    monkeypatch.setenv("no_proxy", "*")
    yield tmp_path / "data"
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def serve():
    """serve(folder) sends its files; serve(folder, send) lets send(handler, body) send them."""
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
    """Check that `folder` gives the real data, and then holds the four files and nothing else."""
    for split in real:
        loaded = load_fashion_mnist(split, folder)
        assert torch.equal(loaded.images, real[split].images)
        assert torch.equal(loaded.labels, real[split].labels)
    assert files_in(folder) == sorted(NAMES)
    raw = Path("FashionMNIST", "raw")
    for name in NAMES:
        assert (folder / raw / name).read_bytes() == (data_folder() / raw / name).read_bytes()


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


def test_gzipped_files_put_there_by_hand(real, isolated, compressed):
    raw = isolated / "FashionMNIST" / "raw"
    shutil.copytree(compressed, raw)
    load_fashion_mnist("test", isolated)
    for name in NAMES:  # torchvision reads them uncompressed
        (raw / f"{name}.gz").unlink()
    assert_loads(isolated, real)


def test_system_copy(real, isolated, compressed, monkeypatch, caplog):
    assert Path("/usr/share/datasets/fashion-mnist") == Path("/", fashion_mnist.PACKAGED_FOLDER)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    caplog.set_level("INFO", logger="cgan_utils.fashion_mnist")
    assert_loads(isolated, real)
    assert f"system copy {compressed}" in caplog.messages[0]
    assert "data folder" in caplog.messages[1]


@pytest.mark.process
def test_torchvisions_downloader_prints_nothing(
    real, isolated, compressed, serve, monkeypatch, capfd
):
    url, asked = serve(compressed)
    monkeypatch.setattr(
        fashion_mnist, "MIRRORS", ("http://127.0.0.1:1/", url)
    )  # the first one refuses
    assert_loads(isolated, real)
    assert {path.lstrip("/") for path in asked} == {f"{name}.gz" for name in NAMES}
    assert capfd.readouterr() == ("", "")


def test_https_mirrors_come_before_torchvisions_own():
    *ours, theirs = fashion_mnist.MIRRORS
    assert len(ours) == 2
    assert all(mirror.startswith("https://") for mirror in ours)
    assert [theirs] == torchvision.datasets.FashionMNIST.mirrors
    assert all(mirror.endswith("/") for mirror in fashion_mnist.MIRRORS)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get and its archive")
def test_apt_get_with_a_broken_configuration(real, isolated, tmp_path, serve, monkeypatch, capfd):
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


def test_default_folder_is_the_configured_one(real, isolated, compressed, monkeypatch):
    monkeypatch.setenv("CGAN_DATA_DIR", str(isolated))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    load_fashion_mnist()
    assert files_in(isolated / "FashionMNIST" / "raw") == sorted(NAMES)


# --- each failure --------------------------------------------------------------------------------


@pytest.mark.process
def test_no_source_at_all(isolated, monkeypatch):
    mirrors = ("http://127.0.0.1:1/", "http://no-such-host.invalid/")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", mirrors)
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
def test_damaged_file_in_the_folder_is_replaced(
    real, isolated, compressed, name, damage, monkeypatch
):
    raw = isolated / "FashionMNIST" / "raw"
    shutil.copytree(data_folder() / "FashionMNIST" / "raw", raw)
    damage(raw / name)
    with pytest.raises(RuntimeError, match=f"data folder {isolated}.*{name} is (damaged|missing)"):
        load_fashion_mnist("train", isolated)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    assert_loads(isolated, real)


@pytest.mark.parametrize("damage", [flip_a_byte, cut_in_half], ids=lambda f: f.__name__)
def test_damaged_gzip_in_the_system_copy(isolated, compressed, tmp_path, damage, monkeypatch):
    system = shutil.copytree(compressed, tmp_path / "system")
    damage(system / "train-labels-idx1-ubyte.gz")
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", system)
    with pytest.raises(RuntimeError, match=r"system copy .*: train-labels-idx1-ubyte (cannot|is)"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


def test_mnist_in_the_folder_is_refused_and_kept(isolated, compressed, mnist, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    raw = shutil.copytree(mnist, isolated / "FashionMNIST" / "raw")
    before = files_in(isolated)
    for split in "train", "test":
        with pytest.raises(RuntimeError, match="is MNIST's file, not FashionMNIST's") as error:
            load_fashion_mnist(split, isolated)
        assert str(raw) in str(error.value)
    for path in raw.glob("train-*"):  # half of the files are enough
        path.unlink()
    with pytest.raises(RuntimeError, match="t10k-labels-idx1-ubyte is MNIST's file"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == [name for name in before if name.startswith("t10k")]


@pytest.mark.process
def test_mirror_that_serves_mnist(isolated, mnist, serve, monkeypatch):
    url, _ = serve(mnist)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url,))
    with pytest.raises(RuntimeError, match=f"{url}: train-labels-idx1-ubyte is MNIST's file"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


@pytest.mark.process
def test_download_cut_half_way(isolated, compressed, serve, monkeypatch):
    def half(handler, body):
        handler.wfile.write(body[: len(body) // 2])

    url, _ = serve(compressed, half)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url,))
    with pytest.raises(RuntimeError, match=f"{url}: .*ended before"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


@pytest.mark.process
def test_server_that_never_answers(isolated, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert_given_up(url, "SERVER_TIMEOUT", "timed out", isolated, monkeypatch)


@pytest.mark.process
def test_server_that_never_ends(isolated, compressed, serve, monkeypatch):
    def trickle(handler, body):
        for i in range(200):
            handler.wfile.write(body[i : i + 1])
            time.sleep(0.1)

    url, _ = serve(compressed, trickle)
    assert_given_up(url, "COMMAND_TIMEOUT", "took more than 2 seconds", isolated, monkeypatch)


def assert_given_up(url, limit, reason, folder, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url,))
    monkeypatch.setattr(fashion_mnist, "COMMAND_TIMEOUT", 15)
    monkeypatch.setattr(fashion_mnist, limit, 2)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=f"{url}: .*{reason}"):
        load_fashion_mnist("train", folder)
    assert time.monotonic() - start < 20
    assert files_in(folder) == []


@pytest.mark.parametrize("place", ["below a file", "/proc/cgan-data", "read-only"])
def test_folder_that_cannot_be_written(isolated, compressed, place, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
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


def test_file_is_replaced_whole_under_its_readers(isolated, compressed, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    damaged = isolated / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half a file")
    with open(damaged, "rb") as reader:
        load_fashion_mnist("test", isolated)
        assert reader.read() == b"half a file"


def test_disk_full_half_way_leaves_nothing(isolated, compressed, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", compressed)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match=r"Cannot write .*No space left"):
        load_fashion_mnist("train", isolated)
    assert files_in(isolated) == []


@pytest.mark.process
def test_two_processes_at_once(real, isolated, compressed, tmp_path):
    script = """if True:
        import pathlib, sys, time
        from cgan_utils import fashion_mnist, load_fashion_mnist
        compressed, folder, go = map(pathlib.Path, sys.argv[1:])
        fashion_mnist.SYSTEM_FOLDER = compressed
        print("ready", flush=True)
        while not go.exists():
            time.sleep(0.001)
        print(len(load_fashion_mnist("train", folder)))
    """
    command = [sys.executable, "-c", script, compressed, isolated, tmp_path / "go"]
    root = Path(fashion_mnist.__file__).parents[1]
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

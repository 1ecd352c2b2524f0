"""The command line does what the functions do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cgan_utils as cg
from cgan_utils import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
ORIGINAL, TUNED = cg.CGANConfig.original(), cg.CGANConfig.tuned()


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cgan_utils", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def shell(monkeypatch, capsys):
    """Run a command in this process and return its .out and .err."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["cgan_utils", *map(str, arguments)])
        command_line.main()
        return capsys.readouterr()

    return main


@pytest.fixture
def refusal(shell):
    """Run a command that must end with a message of one line, and return it."""

    def message(*arguments):
        with pytest.raises(SystemExit) as end:
            shell(*arguments)
        assert re.fullmatch("error: .+", end.value.code)  # Python prints it and exits with 1
        return end.value.code

    return message


@pytest.fixture
def few_images(monkeypatch):
    few = cg.load_fashion_mnist("train")[:64]
    monkeypatch.setattr(command_line, "load_fashion_mnist", lambda split: few)
    return few


@pytest.fixture
def pets(tmp_path):
    """A folder with two classes of five colour images, of several sizes."""
    for name, value in (("cat", 0), ("dog", 255)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (20 + number, 12), (value, 9, 9)).save(folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def trained(monkeypatch):
    """The arguments of each call of `train`, which only creates networks."""
    calls = []

    def train(config, data, device, engine, seed, **options):
        calls.append({"config": config, "data": data, "seed": seed, **options})
        return cg.TrainingState.create(config, seed)

    monkeypatch.setattr(command_line, "train", train)
    return calls


def save_small(path, config=ORIGINAL, **changes):
    """Save a state of small networks."""
    return cg.save_checkpoint(path, cg.TrainingState.create(config.replace(**changes)))


SMALL = {"hidden_dim": 8, "embedding_dim": 2, "latent_dim": 3}
IN_COLOUR = {**SMALL, "classes": ("cat", "dog"), "image_shape": (3, 8, 6)}


# -- all commands


@pytest.mark.process
def test_train_resume_and_sample(shell, tmp_path):
    """Resuming is another process's, which has nothing but the file."""
    path = tmp_path / "new" / "run.pt"
    start = ("train", "--device", "cpu", "--seed", 3, "--hidden-dim", 32, "--output", path)
    shell(*start, "--max-steps", 4)
    more = run("train", "--output", path, "--device", "cpu", "--max-steps", 7, "--resume")
    assert more.returncode == 0 and f"checkpoint: {path}" in more.stdout

    config = ORIGINAL.replace(hidden_dim=32)
    data = cg.load_fashion_mnist("train")
    expected = cg.train(config, data, device="cpu", seed=3, max_steps=7, progress=False)
    state = cg.load_checkpoint(path)
    assert (state.config, state.step) == (config, 7)
    assert_same(state, expected)

    image = tmp_path / "grid.png"
    shell("sample", path, "--output", image, "--count", 2)
    assert image.read_bytes().startswith(b"\x89PNG")


def assert_same(state, expected):
    for a, b in zip(state.generator.parameters(), expected.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("command", ["train", "train --recipe tuned", "sample", "evaluate"])
def test_help_explains_every_flag(command, shell, capsys):
    with pytest.raises(SystemExit):
        shell(*command.split(), "--help")
    text = re.sub(r"[│ ]+", " ", capsys.readouterr().out)  # without the lines around it
    parts = re.split(r"^ (?=-h|--\w|CHECKPOINT)|^\W*(?:\w+ )?options\W*$", text, flags=re.MULTILINE)
    flags = [part for part in parts if part.startswith(("-", "CHECKPOINT"))]
    assert len(flags) >= {"train": 21, "train --recipe tuned": 30}.get(command, 7)
    for flag in flags:
        name = r"\S+(, --no-\S+)?( {\S+| [A-Z]+| \[.*\]\]| \.\.\.)*"
        explained = re.sub(rf"^{name}|\((default:|required)[^)]*\)", "", flag)
        assert re.search("[a-z]{3}", explained), flag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --seed -1 --output x.pt", "seed must be at least 0; got -1"),
        ("train --device mps --output x.pt", r"device must be .*; got 'mps' \([^\[]*\)"),
        ("train --output mine", r"output must end in \.pt, as in mine\.pt; got mine"),
        ("train --output mine.v1", r"output must end in \.pt, as in mine\.v1\.pt; got mine\.v1"),
        ("train --output file/x.pt", r"checkpoint_folder must be .* got file/x \(.*Not a dir.*"),
        ("train --output x.pt --resume --overwrite", "--resume and --overwrite exclude each other"),
        ("train --output x.pt --data nowhere", "path must be a folder; there is none at nowhere"),
        ("train --output x.pt --data empty", "path must hold one sub-folder of images .*"),
        ("train --output x.pt --size 32", "--size and --channels are .* name their --data"),
        ("sample nowhere.pt --output x", "path: there is no checkpoint at nowhere.pt"),
        ("sample file --output x", "path: file is not a whole cgan_utils checkpoint .*"),
        ("sample original --output x --classes Sock", ".* no class 'Sock'; there are T-shirt.*"),
        ("sample original --output x --classes 12", r"classes must lie in 0\.\.9; got 12"),
        ("sample original --output x --seed -1", "seed must be at least 0; got -1"),
        ("sample original --output x --count 0", "count must be at least 1; got 0"),
        ("sample original --output x.doc", "Format 'doc' is not supported .*"),
        ("sample original --output file/x.png", ".*: 'file'"),
        ("sample original --output file --separate", ".*: 'file'"),
        ("evaluate original --device mps", "device must be .*"),
        ("evaluate original --json file/x.json", ".*: 'file'"),
        ("evaluate original --data nowhere", "path must be a folder; there is none at nowhere"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(arguments, message, refusal, few_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("precious")
    Path("empty").mkdir()
    assert re.fullmatch(f"error: {message}", refusal(*arguments.split()))
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["empty", "file"],
        ["empty", "file", "x"],  # the folder for checkpoints
    )
    assert Path("file").read_text() == "precious" and not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("error", [AttributeError, KeyError, AssertionError])
def test_faults_of_the_package_keep_their_traceback(error, shell, monkeypatch):
    def fail(*arguments):
        raise error("a fault")

    monkeypatch.setattr(command_line, "class_grid", fail)
    with pytest.raises(error):
        shell("sample", "original", "--output", "x.png")


def test_warnings_are_one_line(shell, trained, pets, tmp_path):
    (pets / "cat" / "broken.png").write_text("no image")
    shown = shell("train", "--data", pets, "--size", 8, "--output", tmp_path / "x.pt")
    assert shown.err == (
        "warning: 1 of 11 files could not be read: cat/broken.png (not an image)\n"
    )


@pytest.mark.process
def test_a_full_disk_is_named(tmp_path):
    code = f"""if True:
        import resource, sys
        from cgan_utils.__main__ import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        sys.argv = ["", "train", "--max-steps", "1", "--output", {str(tmp_path / "x.pt")!r}]
        main()
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and re.search(
        r"error: .* File too large: '.*step-000000001.pt'\n$", run.stderr
    )
    assert "Traceback" not in run.stderr and not list(tmp_path.glob("**/*.pt"))


# -- train


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--epoch-count", "epoch-count"), ("--epochs", "epochs must be at least 1; got 0")],
)
def test_unknown_flags_and_bad_values_are_refused(flag, message, shell, trained, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        shell("train", flag, 0, "--output", tmp_path / "x.pt")
    said = capsys.readouterr()
    assert end.value.code != 0 and message in f"{end.value.code}{said.err}{said.out}"
    assert not trained and not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ("train --epochs 3", "original"),
        ("train --recipe tuned", "tuned"),
        ("train --seed 1 --recipe=tuned", "tuned"),
        ("train --recipe best", "original"),  # for the parser to refuse
    ],
)
def test_the_recipe_decides_which_flags_there_are(flags, recipe):
    assert command_line.chosen_recipe(flags.split()) == recipe


def test_each_recipe_has_its_own_flags(shell, trained, few_images, tmp_path):
    shell("train", "--epochs", 3, "--output", tmp_path / "1.pt")
    tuned = ("--recipe", "tuned", "--r1-gamma", 0.5, "--no-edge-features")
    shell("train", *tuned, "--output", tmp_path / "2.pt")
    assert [call["config"] for call in trained] == [
        ORIGINAL.replace(epochs=3),
        TUNED.replace(r1_gamma=0.5, edge_features=False),
    ]
    with pytest.raises(SystemExit):
        shell("train", "--r1-gamma", "0.5")


def test_given_flags_win_over_what_fits_the_images(shell, trained, pets, tmp_path, monkeypatch):
    def for_data(config, data):
        shape = tuple(data.images.shape[1:])
        return config.replace(classes=data.classes, image_shape=shape, epochs=77, batch_size=5)

    monkeypatch.setattr(cg.CGANConfig, "for_data", for_data)
    common = ("train", "--data", pets, "--size", 8, "--output")
    shell(*common, tmp_path / "1.pt")
    shell(*common, tmp_path / "2.pt", "--epochs", 10, "--batch_size=32", "--channels", 1)
    shell(
        *common, tmp_path / "3.pt", "--recipe", "tuned", "--epochs=40", "--no-learning-rate-decay"
    )
    fitted = {"classes": ("cat", "dog"), "image_shape": (3, 8, 8), "epochs": 77, "batch_size": 5}
    grey = fitted | {"image_shape": (1, 8, 8), "epochs": 10, "batch_size": 32}  # the defaults
    assert [call["config"] for call in trained] == [
        ORIGINAL.replace(**fitted),
        ORIGINAL.replace(**grey),
        TUNED.replace(**fitted | {"epochs": 40, "instance_noise": 0.1}, learning_rate_decay=False),
    ]
    assert [call["data"].images.shape for call in trained] == [
        (10, 3, 8, 8), (10, 1, 8, 8), (10, 3, 8, 8),
    ]  # fmt: skip


def test_default_outputs_are_named_after_recipe_and_data_and_never_a_notebook_s(
    shell, trained, few_images, pets, tmp_path, monkeypatch
):
    runs = tmp_path / "runs"
    monkeypatch.setenv("CGAN_RUNS_DIR", str(runs))
    monkeypatch.chdir(pets)
    shell("train", "--hidden-dim", 8)
    shell("train", "--data", ".", "--size", 8, "--recipe", "tuned", "--hidden-dim", 8)
    names = {path.name for path in runs.glob("*.pt")}
    assert names == {"original_fashion_mnist.pt", "tuned_pets.pt"}
    notebooks = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("notebooks/**/*.ipynb"))
    theirs = set(re.findall(r"[\w-]+\.pt\b", notebooks))
    assert "original.pt" in theirs and not theirs & names


@pytest.mark.parametrize("there", ["x.pt", "x/step-000000001.pt"])
def test_an_earlier_run_is_refused(there, refusal, trained, few_images, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / there).write_text("precious")
    message = refusal("train", "--output", tmp_path / "x.pt")
    assert all(word in message for word in (there, "--resume", "--overwrite"))
    assert not trained and (tmp_path / there).read_text() == "precious"


def test_overwrite_removes_old_checkpoints_once_a_new_one_is_written(
    shell, refusal, few_images, tmp_path, monkeypatch
):
    path, folder = tmp_path / "x.pt", tmp_path / "x"
    folder.mkdir()
    old = [folder / f"step-00000000{step}.pt" for step in (1, 2, 4, 9)]  # the new ones are 2 and 4
    for file in (path, *old):
        file.write_text("old")
    small = ("train", "--output", path, "--overwrite", "--hidden-dim", 8, "--batch-size", 32)

    def stop(*arguments, **options):
        raise FloatingPointError("training left the finite numbers")

    monkeypatch.setattr(command_line, "train", stop)
    refusal(*small)
    assert all(file.read_text() == "old" for file in (path, *old))

    def interrupted(*arguments, callback, **options):  # after the first epoch
        def look(state):
            callback(state)
            found.append(sorted(file.name for file in folder.glob("*.pt")))

        return cg.train(*arguments, callback=look, **options)

    found = []
    monkeypatch.setattr(command_line, "train", interrupted)
    shell(*small, "--epochs", 2)
    assert found == [["step-000000002.pt"], ["step-000000002.pt", "step-000000004.pt"]]
    assert cg.load_checkpoint(path).step == 4


@pytest.mark.parametrize("recipe", ["original", "tuned"])
def test_resume_takes_all_fields_and_the_seed_from_the_checkpoint(
    recipe, shell, refusal, few_images, tmp_path
):
    path = tmp_path / "x.pt"
    flags = ("--recipe", recipe, "--hidden-dim", 8, "--batch-size", 16, "--epochs", 2, "--seed", 3)
    shell("train", *flags, "--output", path, "--max-steps", 6)
    shell("train", "--output", path, "--resume", "--epochs", 3)
    config = getattr(cg.CGANConfig, recipe)()
    config = config.replace(hidden_dim=8, batch_size=16, epochs=3)
    state = cg.load_checkpoint(path)
    assert (state.config, state.seed, state.step) == (config, 3, 12)
    if recipe == "original":  # the tuned recipe's learning rate depends on the number of epochs
        assert_same(state, cg.train(config, few_images, seed=3, progress=False))

    given = ("--recipe", recipe, "--seed", 3, "--hidden-dim", 8, "--betas", 0.25, 0.5)
    message = refusal("train", "--output", path, "--resume", *given)
    assert f"betas {list(config.betas)}; got betas [0.25, 0.5]" in message
    assert message.startswith("error: resume_from:") and "seed" not in message
    message = refusal("train", "--output", path, "--resume", "--seed", 4)
    assert message.endswith("was trained with seed 3; got seed 4")
    other = {"original": "tuned", "tuned": "original"}[recipe]
    message = refusal("train", "--output", path, "--resume", "--recipe", other)
    assert message.endswith(f"was trained with recipe {recipe}; got recipe {other}")


def test_resume_without_a_folder_goes_on_from_the_output(shell, few_images, tmp_path):
    path = save_small(tmp_path / "x.pt", hidden_dim=8)
    shell("train", "--output", path, "--resume", "--max-steps", 2)
    state = cg.load_checkpoint(path)
    assert (state.step, state.config.hidden_dim) == (2, 8)


def test_resume_without_a_checkpoint_starts(shell, trained, few_images, tmp_path):
    shell("train", "--output", tmp_path / "x.pt", "--resume", "--hidden-dim", 8)
    assert trained[0]["resume_from"] is None and trained[0]["config"].hidden_dim == 8


def test_resume_asks_for_the_images_of_other_classes(shell, refusal, trained, pets, tmp_path):
    path = save_small(tmp_path / "x.pt", **IN_COLOUR)
    message = refusal("train", "--output", path, "--resume")
    assert "--data" in message and "cat, dog" in message
    shell("train", "--output", path, "--resume", "--data", pets)
    assert trained[0]["data"].images.shape == (10, 3, 8, 6)  # as in the checkpoint
    assert trained[0]["config"] == ORIGINAL.replace(**IN_COLOUR)


def test_checkpoints_that_cannot_be_loaded_are_neither_ignored_nor_removed(refusal, tmp_path):
    old = tmp_path / "mine" / "step-000000009.pt"
    old.parent.mkdir()
    old.write_text("another version's")
    message = refusal("train", "--output", tmp_path / "mine.pt", "--resume")
    assert f"no checkpoint in {old.parent} can be loaded" in message and old.exists()


# -- sample


def test_sample_shows_the_rows_of_some_classes(shell, tmp_path, monkeypatch):
    shown = []

    def plot_class_grid(images, classes):
        shown.append((images, list(classes)))
        return cg.plot_class_grid(images, classes)

    monkeypatch.setattr(command_line, "plot_class_grid", plot_class_grid)
    asked = ("sample", "tuned", "--count", 3, "--seed", 4, "--output", tmp_path / "new" / "grid")
    assert shell(*asked).out == f"image: {tmp_path / 'new' / 'grid.png'}\n"
    shell(*asked, "--classes", "Bag", 5)
    grid = cg.class_grid(cg.load_pretrained("tuned"), 3, seed=4)
    (images, classes), (some_images, some_classes) = shown
    torch.testing.assert_close(images, grid)
    torch.testing.assert_close(some_images, torch.cat([grid[24:27], grid[15:18]]))
    assert (tuple(classes), some_classes) == (ORIGINAL.classes, ["Bag", "Sandal"])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]


@pytest.mark.parametrize("colours", ["grey", "RGB"])
def test_separate_images_are_the_generator_s(colours, shell, tmp_path):
    name, classes, names = "original", ("Sandal", "0"), ("sandal", "t-shirt-top")
    if colours == "RGB":
        name, classes, names = save_small(tmp_path / "x.pt", **IN_COLOUR), ("dog", "0"), "dog cat"
        names = names.split()
        generator = cg.load_checkpoint(name)
    else:
        generator = cg.load_pretrained(name)
    folder = tmp_path / "new" / "images"
    command = ("sample", name, "--separate", "--count", 2, "--seed", 4, "--output", folder)
    assert shell(*command, "--classes", *classes).out == f"images: {folder}\n"
    files = [folder / f"{name}_00{column}.png" for name in names for column in (0, 1)]
    assert sorted(folder.iterdir()) == sorted(files)
    labels = [int(c) if c.isdecimal() else c for c in classes for _ in range(2)]
    z = cg.sample_latent(2, generator.config.latent_dim, seed=4).repeat(2, 1)
    for file, image in zip(files, cg.sample(generator, labels, latent=z), strict=True):
        with Image.open(file) as png:
            assert png.mode == {"grey": "L", "RGB": "RGB"}[colours]
            pixels = torch.from_numpy(np.atleast_3d(np.array(png))).permute(2, 0, 1)
        rounding = (cg.normalize(pixels) - image).abs().max()
        assert rounding <= 1.001 / 255  # half the distance of two neighbouring grey levels


def test_a_class_named_like_a_number_is_meant_by_its_name(shell, tmp_path):
    path = save_small(tmp_path / "x.pt", **IN_COLOUR | {"classes": ("1", "0")})
    folder = tmp_path / "images"
    shell("sample", path, "--separate", "--count", 1, "--classes", "0", "--output", folder)
    assert [file.name for file in folder.iterdir()] == ["0_000.png"]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (("T-shirt/top", "Ankle boot", "Größe 5"), ["t-shirt-top", "ankle-boot", "größe-5"]),
        (("../..", "C:\\x"), ["0-", "1-c-x"]),
        (("cat", "Cat", "cat?"), ["0-cat", "1-cat", "2-cat"]),
    ],
)
def test_file_names_are_safe_and_distinct(classes, names):
    assert command_line.file_names(classes) == names


# -- evaluate


@pytest.fixture
def measured(monkeypatch):
    """The arguments of each call of `evaluate`, which measures nothing."""
    calls = []
    report = cg.pretrained.load_record("original")["metrics"]
    monkeypatch.setattr(command_line, "evaluate", lambda *parts: calls.append(parts) or report)
    return calls


def test_evaluate_measures_a_shipped_generator(shell, measured, tmp_path):
    shell("evaluate", "tuned", "--json", tmp_path / "new" / "x.json", "--seed", 4)
    ((generator, *rest),) = measured
    assert generator.config == cg.load_pretrained("tuned").config and rest == [4, None]
    assert "gan_test" in json.loads((tmp_path / "new" / "x.json").read_text(encoding="utf-8"))


def test_evaluate_measures_on_a_folder_in_the_checkpoint_s_shape(
    shell, refusal, measured, pets, tmp_path
):
    path = save_small(tmp_path / "x.pt", **IN_COLOUR)
    message = refusal("evaluate", path)
    assert "--data" in message and "cat, dog" in message and not measured
    shell("evaluate", path, "--data", pets)
    ((_, _, data),) = measured
    assert data.classes == ("cat", "dog") and data.images.shape == (10, 3, 8, 6)


def test_an_unwritable_report_is_refused_before_measuring(refusal, measured, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert str(tmp_path / "file") in refusal("evaluate", "tuned", "--json", tmp_path / "file/x")
    assert not measured

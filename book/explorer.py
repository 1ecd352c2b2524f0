"""The explorer's data: what the page `explorer.md` shows, written as JavaScript by `make book`.

`_static/explorer/` of the site gets one file with the parameters of each shipped generator, in half
precision as they ship, and one with the images that notebook 03 kept of each epoch. Each file is a
call of a function: a page opened from a disk may load scripts, but no other files.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cgan_utils as cg
from cgan_utils.pretrained import FOLDER

PAGE = "book/explorer"
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_training.ipynb"
STRIP_ALT = "One image per class, untrained and per epoch"
SCRIPTS = ("generator.js", "explorer/original.js", "explorer/tuned.js", "explorer/epochs.js")
SCRIPTS += ("explorer.js",)


def setup(app):
    app.connect("builder-inited", write_data)
    app.connect("html-page-context", add_scripts)


def write_data(app):
    if app.builder.format != "html":
        return
    folder = Path(app.outdir) / "_static" / "explorer"
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in ("original", "tuned"):
        description = json.dumps(describe(recipe))
        (folder / f"{recipe}.js").write_text(f'addGenerator("{recipe}", {description});\n')
    frames = base64.b64encode(epoch_images().tobytes()).decode()
    (folder / "epochs.js").write_text(f'const epochBytes = "{frames}";\n')


def add_scripts(app, pagename, *_):
    """Load the scripts, in this order, and the style on the explorer's page alone."""
    if pagename == PAGE:
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")
        app.add_css_file("explorer.css")


def describe(recipe):
    """Return what the page needs to know of a shipped generator, ready for JSON."""
    generator = cg.load_pretrained(recipe)
    stored = torch.load(FOLDER / f"{recipe}.pt", weights_only=True)
    return {
        "classes": generator.config.classes,
        "latentDim": generator.config.latent_dim,
        "latentScale": getattr(generator, "latent_scale", 1.0),
        "parameters": {
            name: encode(name, tensor)
            for name, tensor in stored.items()
            if tensor.dtype == torch.float16  # and not batch norm's count of batches
        },
    }


def encode(name, tensor):
    """Return shape and elements; a layer's weight is transposed, to one row per input."""
    if tensor.ndim == 2 and name != "embedding.weight":
        tensor = tensor.T.contiguous()
    halves = tensor.numpy().astype("<f2").tobytes()
    return {"shape": list(tensor.shape), "halves": base64.b64encode(halves).decode()}


def epoch_images(notebook=NOTEBOOK):
    """Cut notebook 03's figure of all epochs into images: uint8 (epochs, classes, 28, 28).

    Raises ValueError if it does not show one row per class, and a column per epoch with one for the
    untrained generator.
    """
    config = cg.CGANConfig.original()
    outputs = (
        output
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    )
    (png,) = (
        output["data"]["image/png"]
        for output in outputs
        if output.get("metadata", {}).get("image/png", {}).get("alt", "").startswith(STRIP_ALT)
    )
    figure = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"))
    rows, columns = (image_spans(np.mean(figure < 255, axis=axis)) for axis in (1, 0))
    if (len(rows), len(columns)) != (config.num_classes, config.epochs + 1):
        raise ValueError(f"{notebook.name}: its strip has {len(rows)} x {len(columns)} images")
    size = config.image_shape[1:]
    cells = [[Image.fromarray(figure[row, column]) for row in rows] for column in columns]
    return np.array(
        [[cell.resize(size, Image.Resampling.NEAREST) for cell in epoch] for epoch in cells]
    )


def image_spans(filled, least=28):
    """Return as slices where more than half of a line is not white, over `least` lines or more."""
    edges = np.flatnonzero(np.diff(filled > 0.5, prepend=False, append=False))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= least]

"""Does D learn the training images by heart?

    python benchmarks/discriminator_overfitting.py            both recipes, one seed
    python benchmarks/discriminator_overfitting.py --short    one epoch on few images

trains each recipe for 20 epochs on the first 50,000 training images. After each epoch D is shown
5,000 images of three kinds: some that it was trained on, some of the 10,000 held out, and new ones
of the G under training. If its mean output for held-out images falls towards that of generated
ones while the one for training images does not, D knows its training images by heart. Writes
results/discriminator_overfitting.json: mean sigmoid of the logits, per epoch.
"""

import time
from pathlib import Path

import torch
import tyro
from quality import machine, read_results, write_results

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "discriminator_overfitting.json"
RECIPES = "original", "tuned"
EPOCHS, HELD_OUT, COUNT = 20, 10_000, 5000


@torch.no_grad()
def mean_output(discriminator, images, labels):
    """Return D's mean probability of "real" for these images with these labels."""
    pairs = zip(images.split(1000), labels.split(1000), strict=True)
    logits = torch.cat([discriminator(*pair) for pair in pairs])
    return round(logits.double().sigmoid().mean().item(), 5)


def measure(config, train, held_out, seed):
    """Train a recipe and return D's outputs by kind of image, one per epoch."""
    real = {
        name: (cg.normalize(data.images[:COUNT]), data.labels[:COUNT])
        for name, data in (("training", train), ("held out", held_out))
    }
    outputs = {name: [] for name in (*real, "generated")}

    def record(state):
        for name, images_and_labels in real.items():
            outputs[name].append(mean_output(state.discriminator, *images_and_labels))
        labels = train.labels[:COUNT]
        images = cg.sample(state.generator, labels, seed=state.epoch, latent_scale=1.0)
        outputs["generated"].append(mean_output(state.discriminator, images, labels))
        print({name: values[-1] for name, values in outputs.items()}, flush=True)

    start = time.process_time()
    cg.train(config, train, "cpu", seed=seed, callback=record, progress=False)
    return {"cpu_seconds": round(time.process_time() - start), "outputs": outputs}


def main(output: Path = RESULTS, seed: int = 0, short: bool = False):
    """Measure what the results file does not hold yet; --short only checks that it runs."""
    data = cg.load_fashion_mnist("train")
    train, held_out = data[:-HELD_OUT], data[-HELD_OUT:]
    for recipe in RECIPES:
        config = getattr(cg.CGANConfig, recipe)().replace(epochs=1 if short else EPOCHS)
        results = read_results(output)
        if recipe not in results:
            part = train[:COUNT] if short else train
            results[recipe] = measure(config, part, held_out, seed)
            write_results(output, results | {"seed": seed, "machine": machine("cpu")})


if __name__ == "__main__":
    tyro.cli(main)

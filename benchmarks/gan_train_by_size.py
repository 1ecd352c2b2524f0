"""How does GAN-train of the pretrained tuned generator grow with the number of images?

    python benchmarks/gan_train_by_size.py            about five minutes on one core
    python benchmarks/gan_train_by_size.py --short    the smallest number only

trains GAN-train's classifier on a number of generated images, and another one on as many real
images. Writes results/gan_train_by_size.json: the accuracy of both for each number.
"""

from pathlib import Path

import tyro
from quality import machine, write_results

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "gan_train_by_size.json"
SIZES = (10_000, 20_000, 30_000, 60_000)


def main(output: Path = RESULTS, short: bool = False):
    """Measure and write the results; --short only checks that everything runs."""
    generator = cg.load_pretrained("tuned")
    accuracy = {}
    print(f"{'images':>8}{'generated':>11}{'real':>8}{'share':>8}")
    for size in SIZES[: 1 if short else None]:
        report = cg.evaluate(generator, gan_train_images=size, progress=False)
        generated, real = (round(r["gan_train"], 5) for r in (report, report["real"]))
        accuracy[size] = {"generated": generated, "real": real}
        print(f"{size:8,}{generated:11.3f}{real:8.3f}{generated / real:8.1%}", flush=True)
    write_results(output, {"gan_train": accuracy, "machine": machine("cpu")})


if __name__ == "__main__":
    tyro.cli(main)

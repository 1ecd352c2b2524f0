"""Does a run collapse when z has more numbers than the images have pixels?

    python benchmarks/latent_dim.py        about five minutes on one core

trains the original recipe on scikit-learn's digits, of 8 x 8 pixels, with z of 16 numbers (as
`for_data` chooses) and of 100 (the recipe's own), once per seed. Writes results/latent_dim.json:
the lowest and the mean spread over z among the ten classes of each run.
"""

from pathlib import Path

import tyro
from other_data import digits
from quality import machine, write_results

import cgan_utils as cg

RESULTS = Path(__file__).parent / "results" / "latent_dim.json"


def main(seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5), output: Path = RESULTS):
    """Measure and write the results."""
    data = digits()
    fitted = cg.CGANConfig.original().for_data(data)
    results = {}
    for latent_dim in fitted.latent_dim, cg.CGANConfig.original().latent_dim:
        config = fitted.replace(latent_dim=latent_dim)
        runs = results[str(latent_dim)] = {}
        for seed in seeds:
            state = cg.train(config, data, "cpu", seed=seed, progress=False)
            spreads = cg.class_spread(state, data, seed).values()
            run = {"lowest": min(spreads), "mean": sum(spreads) / len(spreads)}
            runs[str(seed)] = {name: round(spread, 4) for name, spread in run.items()}
            print(f"z of {latent_dim:3} numbers, seed {seed}: {runs[str(seed)]}", flush=True)
    write_results(output, {"spread": results, "machine": machine("cpu")})


if __name__ == "__main__":
    tyro.cli(main)

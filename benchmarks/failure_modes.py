"""Do the faults of notebook 07 fail as described, whatever the seed?

    python benchmarks/failure_modes.py --seeds 0 1 2

runs the notebook's own cells once per seed, with all their asserts, and writes
results/failure_modes.json: for each run and metric the values, one per seed.
"""

import contextlib
import io
import itertools
import re
from pathlib import Path

import matplotlib
import nbformat
import tyro
from quality import machine, write_results

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "07_failure_modes.ipynb"
RESULTS = Path(__file__).parent / "results" / "failure_modes.json"
SEED = re.compile(r"^seed = 0$", re.MULTILINE)


def run_notebook(seed):
    """Return the notebook's {run: {metric: value}}.

    All code cells run, in order, up to the one that reads the results file.
    """
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    if len(re.findall(SEED, "\n".join(sources))) != 1:
        raise SystemExit(f"{NOTEBOOK.name} should have one line 'seed = 0'")
    namespace = {}
    for source in itertools.takewhile(lambda source: RESULTS.name not in source, sources):
        with contextlib.redirect_stdout(io.StringIO()):  # plots are printed as bytes here
            exec(re.sub(SEED, f"seed = {seed}", source), namespace)
    return namespace["metrics"]


def main(seeds: tuple[int, ...] = (0, 1, 2)):
    """Run the notebook with each seed and write the results file.

    Args:
        seeds: three or more
    """
    matplotlib.use("agg")
    per_seed = []
    for seed in seeds:
        per_seed.append(run_notebook(seed))
        print(f"seed {seed}")
        for run, metrics in per_seed[-1].items():
            print(f"  {run:24}", *(f"{name} {value:9.3f}" for name, value in metrics.items()))
    runs = {
        run: {name: [round(metrics[run][name], 5) for metrics in per_seed] for name in names}
        for run, names in per_seed[0].items()
    }
    write_results(RESULTS, {"seeds": list(seeds), "runs": runs, "machine": machine("cpu")})


if __name__ == "__main__":
    tyro.cli(main)

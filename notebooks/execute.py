"""Execute notebooks from start to end, as a reader does, and print their progress.

python notebooks/execute.py                       all of them, in place; commit the outputs
python notebooks/execute.py solutions/01          the solutions of 01, in place
python notebooks/execute.py --output runs 01 02   these two; executed copies go to runs/
"""

import argparse
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


class EchoingClient(NotebookClient):
    """A client that prints what cells print, while they run."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(path):
    """Execute the notebook at `path` in its own folder and return it normalised."""
    notebook = nbformat.read(path, as_version=4)
    client = EchoingClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        coalesce_streams=True,  # also collapses a progress bar's rewritten lines
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    normalize(notebook)
    return notebook


def normalize(notebook):
    """Drop metadata that differs between runs or machines; number the cells."""
    kernel = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    notebook.metadata = {
        "kernelspec": kernel,
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        for output in cell.get("outputs", ()):
            if (
                output.output_type == "stream"
            ):  # an erased progress bar leaves blanks
                output.text = re.sub(r" *\r$", "", output.text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "numbers", nargs="*", help="which notebooks, such as 01 (default: all)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the copies (default: in place)"
    )
    arguments = parser.parse_args()
    paths = sorted(FOLDER.glob("[0-9]*.ipynb")) + sorted(
        FOLDER.glob("solutions/[0-9]*.ipynb")
    )
    known = {
        path.relative_to(FOLDER).as_posix().split("_")[0]: path
        for path in paths
    }
    if unknown := [
        number for number in arguments.numbers if number not in known
    ]:
        parser.error(
            f"no notebook {', '.join(unknown)}; there are {', '.join(known)}"
        )
    if arguments.numbers:
        paths = [
            path
            for number, path in known.items()
            if number in arguments.numbers
        ]

    for position, path in enumerate(paths, start=1):
        print(f"[{position}/{len(paths)}] {path.name}", flush=True)
        start = time.perf_counter()
        notebook = execute(path)
        target = (arguments.output or FOLDER) / path.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        print(
            f"[{position}/{len(paths)}] {path.name}: {time.perf_counter() - start:.0f} s"
        )


if __name__ == "__main__":
    main()

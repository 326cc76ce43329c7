"""Execute the notebooks from top to bottom and keep their outputs: `make notebooks`, or `python notebooks/run.py FILE`.

`--into=FOLDER` writes them there and leaves the files alone. `--times="two CPU cores"` also writes what each cell took
there into its first line; such lines of other places stay.

Each runs in a process of its own, in this folder, on whatever device is here.
"""

from __future__ import annotations

import argparse
import datetime
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
TIME = re.compile(r"# (\d+) s on (.*)\n")  # of a cell, one line for every place where it was measured


def execute(path: Path, seconds: int = 600) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run; the file is left alone. A cell may take `seconds`.

    Raises:
      CellExecutionError: a cell failed; the message shows it and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    return client.execute()


def time_cells(notebook: nbformat.NotebookNode, place: str) -> None:
    """Say in each cell that took a second or more how long that was at `place`; the set-up is left alone."""
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"][1:]:
        moments = cell.metadata["execution"]
        began, ended = (
            datetime.datetime.fromisoformat(moments[name]) for name in ("iopub.execute_input", "shell.execute_reply")
        )
        code = TIME.sub(lambda line: "" if line[2] == place else line[0], cell.source)
        seconds = round((ended - began).total_seconds())
        cell.source = f"# {seconds} s on {place}\n{code}" if seconds else code


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from run to run and machine to machine: progress, times of execution, kernel versions."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    # Ruff asks for the language; Colab offers the accelerator first.
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "accelerator": "GPU"}
    return notebook


def main() -> None:
    """Execute and save the named notebooks, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--times", metavar="PLACE")
    arguments = parser.parse_args()
    for path in arguments.files or sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(path)
        if arguments.times:
            time_cells(notebook, arguments.times)
        notebook = tidy(notebook)
        place = arguments.into / path.name if arguments.into else path
        temporary = place.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(place)
        print(f"{place.name}: {place.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()

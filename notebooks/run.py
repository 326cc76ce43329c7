"""Execute the notebooks from top to bottom and keep their outputs: `make notebooks`, or `python notebooks/run.py FILE`.

Each runs in a process of its own, in this folder, on whatever device is here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def execute(path: Path, seconds: int = 600) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run; the file is left alone. A cell may take `seconds`.

    Raises:
      CellExecutionError: a cell failed; the message shows it and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    return client.execute()


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


def main(names: list[str]) -> None:
    """Execute and save the named notebooks, or all of them."""
    for path in map(Path, names) if names else sorted(FOLDER.glob("*.ipynb")):
        notebook = tidy(execute(path))
        temporary = path.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(path)
        print(f"{path.name}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

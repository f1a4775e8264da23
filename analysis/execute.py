"""Run the notebooks on a results folder: `python -m analysis.execute results` fills results/notebooks with copies."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from experiments.components import ROOT
from experiments.errors.process import one_line_errors

NOTEBOOKS = ROOT / "analysis" / "notebooks"


def execute(path, results, **variables):
    """The notebook in `path` with its outputs, as a new nbformat node, run on the folder `results`.

    The kernel is this interpreter, whatever kernels are installed for the user. `variables` are further environment
    variables of the kernel. Raises nbclient's CellExecutionError, which quotes the cell, when one fails.
    """
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    place = {"ASKMASK_RESULTS": str(Path(results).resolve())}
    with tempfile.TemporaryDirectory() as sockets:  # of its own: nothing listens on a port
        kernel = AsyncKernelManager(
            transport="ipc",
            connection_file=f"{sockets}/kernel.json",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        )
        client = NotebookClient(notebook, km=kernel, timeout=600, resources={"metadata": {"path": str(path.parent)}})
        return client.execute(cleanup_kc=True, env={**os.environ, **place, **variables})


if __name__ == "__main__":
    import nbformat
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if not arguments.results.is_dir():
        sys.exit(f"{arguments.results} is not a folder of results: `make demo` makes one.")
    folder = arguments.results / "notebooks"
    with one_line_errors():
        folder.mkdir(exist_ok=True)
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            try:
                nbformat.write(execute(path, arguments.results), folder / path.name)
            except CellExecutionError as error:
                sys.exit(f"{path.stem}: {error.ename}: {error.evalue}")
            print(folder / path.name, flush=True)

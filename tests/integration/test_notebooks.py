"""The notebooks run as they are, top to bottom, against rehearsal fleets that they start themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import fleet
from tests.integration.support import KEPT, Home, until

FOLDER = Path(fleet.__file__).parent.parent / "notebooks"
CELL_TIMEOUT_S = 400
PLOTS = {"quickstart.ipynb": 0, "results.ipynb": 5}


@pytest.fixture
def user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A user with an empty home; whatever a notebook starts for it must end."""
    import shutil
    import tempfile

    from fleet.cluster import processes

    # Under a short path: Ray's Unix sockets lie below the temporary folder.
    folder = Path(tempfile.mkdtemp(prefix=f"fl{os.getpid()}-", dir="/tmp"))
    (folder / "user").mkdir()
    for name in list(os.environ):
        if name not in KEPT and not name.startswith("PYTEST"):
            monkeypatch.delenv(name)
    # The folder of the kernel's own settings and of the plots' fonts is the empty home too.
    for name, value in {"HOME": str(folder / "user"), "TMPDIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    home = Home(folder)
    yield home
    try:
        until(lambda: not home.left(), f"no process of the notebook is left, but: {home.left()}", 30)
    finally:
        processes.kill_until_none(home.processes)
        shutil.rmtree(folder, ignore_errors=True)


def images(notebook: Any) -> list[str]:
    """Return the plots of an executed notebook, as PNG in base64."""
    return [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


@pytest.mark.parametrize("name", sorted(PLOTS))
@pytest.mark.timeout(900)
# ZMQ's own: the kernel's sockets are closed by its client when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")
def test_it_runs_top_to_bottom(name: str, user: Home) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    began = time.monotonic()
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", allow_errors=False)
    client.execute(cwd=str(user.folder))
    print(f"{name}: {time.monotonic() - began:.0f} s")
    errors = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    assert not errors
    assert len(images(notebook)) == PLOTS[name]
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "The fleet has ended." in said
    if name == "quickstart.ipynb":
        assert "return a + b" in said
        assert "allowed touch" in said and "denied rm" in said


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.name in PLOTS
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")

"""What is shipped: complete metadata, one place for each version, every file, type information, and a working install.

The last test makes an empty environment for each interpreter and needs a package index: `make package` runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import envtune_agents

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT, *sorted(path.parent for path in (ROOT / "integrations").glob("*/pyproject.toml"))]
INTERPRETERS = os.environ.get("ENVTUNE_PACKAGE", "").split()
SMOKE = """
import envtune_agents, pathlib, sys
from envtune_agents import Playground, build_agent_graph, evaluate, playground_tasks
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model

tasks = playground_tasks(seed=0, n=4)
model = ScriptedChatModel(script=[calls_message(("no_such_tool", {})), "Done."])
state = build_agent_graph(model, Playground(tasks[0]), hints=3).invoke({})
assert any('"hint"' in str(message.content) for message in state["messages"])
assert evaluate(solution_model(tasks), tasks, Playground).score == 1.0
home = pathlib.Path(envtune_agents.__file__).parent
assert (home / "py.typed").exists()
assert home.is_relative_to(sys.prefix), home
print("smoke passed")
"""


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def build(folder: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution of a project; needs no network."""
    pytest.importorskip("hatchling", reason="needs: pip install hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(out)]
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    name = project(folder)["project"]["name"].replace("-", "_")
    return next(out.glob(f"{name}-*.whl")), next(out.glob(f"{name}-*.tar.gz"))


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_the_metadata_are_complete(folder: Path) -> None:
    about = project(folder)["project"]
    assert {"name", "description", "readme", "license", "requires-python", "classifiers", "urls"} <= set(about)
    assert (folder / about["readme"]).is_file()
    assert about["requires-python"] == ">=3.11"
    for wanted in ("Programming Language :: Python :: 3.11", "Typing :: Typed"):
        assert wanted in about["classifiers"]


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_a_version_is_written_in_one_place(folder: Path) -> None:
    sources = [*(folder / "src").rglob("*.py")]
    written = [path for path in sources if re.search(r'^__version__ = "', path.read_text(), re.M)]
    declared = "version" in project(folder)["project"]
    assert len(written) + declared == 1


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_wheel_and_source_distribution_hold_everything(folder: Path, tmp_path: Path) -> None:
    wheel, archive = build(folder, tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(folder / "src").as_posix()
        for path in (folder / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert files - names == set()
    assert any(name.endswith("/py.typed") for name in names)
    assert all(name in files or ".dist-info/" in name for name in names)
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Requires-Python: >=3.11" in metadata
    if folder == ROOT:
        assert f"Version: {envtune_agents.__version__}\n" in metadata
    assert archive.stat().st_size < 5_000_000


@pytest.mark.skipif(not INTERPRETERS, reason="make package: an empty environment each, and a package index")
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_it_works_in_an_empty_environment(interpreter: str, tmp_path: Path) -> None:
    wheels = [build(folder, tmp_path / "dist")[0] for folder in PROJECTS]
    run([interpreter, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    heavy = ("envtune_trl", "envtune_ray", "envtune_verl")
    light = [str(wheel) for wheel in wheels if not wheel.name.startswith(heavy)]
    run([python, "-m", "pip", "install", "--quiet", *light], tmp_path)
    run([python, "-m", "pip", "check"], tmp_path)
    assert "smoke passed" in run([python, "-c", SMOKE], tmp_path)
    envtune = str(tmp_path / "venv" / "bin" / "envtune")
    assert "nothing is broken" in run([envtune, "doctor", "--probe"], tmp_path)
    assert '"event": "score"' in run([envtune, "play", "playground_base_0_0", "--json"], tmp_path, typed="\n")
    run([python, "-c", "from envtune_langchain import HintMiddleware; HintMiddleware()"], tmp_path)
    assert "mixed" not in run([python, "-c", "import envtune_bfcl; print(envtune_bfcl.__doc__)"], tmp_path)


def run(command: list[str], folder: Path, typed: str = "") -> str:
    """What a command prints, run outside the checkout and without its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, input=typed, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout

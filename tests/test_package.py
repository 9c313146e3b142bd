"""What holds for the package as a whole: what it exports, what importing costs, and who may know whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import envtune_agents

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "envtune_agents"
HEAVY = ("torch", "transformers", "langgraph", "langchain", "langchain_core", "pydantic", "llguidance", "rich", "typer")

# The stations in travel order: each may import those before it. `testing` is a double of what stands before it.
STATIONS = [
    "errors", "types", "tape", "deadline", "tool_schema", "weights", "qwen", "grammar", "engine", "chat_model",
    "hint_rules", "hints", "progress", "graph", "playground", "testing", "rollout", "task_source", "curriculum",
    "summary", "export", "view", "evaluate", "pytest_plugin", "ledger", "mining", "counterfactual", "hint_writer",
    "call_text", "play", "doctor", "serve", "cli", "__main__",
]  # fmt: skip


def test_every_exported_name_exists_and_has_a_docstring() -> None:
    assert sorted(envtune_agents.__all__) == sorted(envtune_agents._HOME)
    for name in envtune_agents.__all__:
        assert getattr(envtune_agents, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = envtune_agents.nothing


@pytest.mark.parametrize("package", [path.parent.name for path in SOURCE.glob("*/__init__.py")])
def test_every_package_exports_what_it_says(package: str) -> None:
    module = importlib.import_module(f"envtune_agents.{package}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


def test_importing_loads_nothing_heavy() -> None:
    program = "import sys, envtune_agents; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(HEAVY) == set()
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["types", "errors", "qwen", "progress", "hint_rules", "tool_schema", "hints"])
def test_pure_stations_need_no_framework(module: str) -> None:
    program = f"import sys, envtune_agents.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "transformers", "langgraph", "langchain"} == set()


def test_arrows_point_left_to_right() -> None:
    found = {path.stem if path.parent == SOURCE else path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py")}
    assert found - {"__init__"} == set(STATIONS)
    wrong = [
        f"{path.relative_to(SOURCE)} imports {imported}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "__init__.py"
        for imported in imports_of(path)
        if STATIONS.index(imported) > STATIONS.index(station_of(path))
    ]
    assert wrong == []


def test_core_never_imports_an_integration_and_integrations_not_each_other() -> None:
    for path in SOURCE.rglob("*.py"):
        assert "import envtune_" not in path.read_text().replace("import envtune_agents", ""), path
    for path in (ROOT / "integrations").glob("*/src/**/*.py"):
        own = path.relative_to(ROOT / "integrations").parts[2]
        tops = {name.split(".")[0] for name in modules_in(path)}
        assert {top for top in tops if top.startswith("envtune_")} <= {"envtune_agents", own}, path


def station_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    parts = (name.split(".") for name in modules_in(path))
    return {part[1] for part in parts if part[0] == "envtune_agents" and len(part) > 1} - {station_of(path)}


def modules_in(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "envtune_agents"),
            }
    return names

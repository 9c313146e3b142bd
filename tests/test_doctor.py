"""`envtune doctor`: what it finds in this environment, and in environments made wrong on purpose."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.doctor import Problem, diagnose
from envtune_agents.doctor.features import Feature, Package, conflicts, in_range, install_line
from envtune_agents.errors import WeightsError

Envtune = Callable[..., Any]


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """Metadata as pip writes it, without any code."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def checkpoint(folder: Path) -> None:
    """The headers of a small checkpoint: all that an estimate reads."""
    sizes = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "tokenizer.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": [100, 64], "model.layers.0.mlp.up_proj.weight": [256, 64]}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())


def test_this_environment_is_healthy_and_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from envtune_agents.doctor import diagnose; found = diagnose(); heavy = {'torch', 'transformers', "
        "'langgraph', 'langchain_core'}; print(found.healthy, found.probes, *heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "None"]


def test_the_json_says_what_the_table_says(envtune: Envtune, monkeypatch: pytest.MonkeyPatch) -> None:
    done = envtune("doctor", "--json")
    found = json.loads(done.out)
    states = {feature["name"]: feature["state"] for feature in found["features"]}
    assert done.code == 0
    assert found["healthy"]
    assert states["core"] == "ready"
    assert {"local", "grammar", "quant", "bfcl", "langchain"} <= set(states)
    assert found["machine"]["cpus"] >= 1
    monkeypatch.setenv("COLUMNS", "200")
    table = envtune("doctor")
    assert all(name in table.out for name in states)
    assert "nothing is broken" in table.out
    assert table.err == ""


def test_mixed_langchain_versions_are_named_with_the_line_that_mends_them(
    tmp_path: Path, envtune: Envtune, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "langchain", "0.3.27", "langchain-core<1.0.0,>=0.3.72", "pydantic>=2")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = envtune("doctor")
    assert done.code == 1
    assert "langchain 0.3.27 wants langchain-core<1.0.0,>=0.3.72, but " in done.out
    assert "pip install --upgrade langchain langchain-core" in done.out
    assert "nothing is broken" not in done.out
    assert done.err == ""


def test_a_version_out_of_range_is_broken_and_an_absent_extra_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = ["langgraph>=1.2,<2", "torch>=2.6; extra == 'local'", "not-there; extra == 'zstd'"]
    distribution(tmp_path, "envtune-agents", "0.1.0", *needs)
    distribution(tmp_path, "torch", "1.13.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = diagnose()
    features = {feature.name: feature for feature in found.features}
    assert features["local"].state == "broken"
    assert features["zstd"].state == "missing"
    assert features["zstd"].install == "pip install 'envtune-agents[zstd]'"
    assert Problem("local: torch 1.13.1 (wanted >=2.6).", "pip install 'envtune-agents[local]'") in found.problems
    assert not any("zstd" in problem.what for problem in found.problems)
    assert not found.healthy


def test_a_core_that_lacks_a_package_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "envtune-agents", "0.1.0", "not-there>=1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Problem("core: not-there (missing).", "pip install envtune-agents") in diagnose().problems


def test_a_python_out_of_range_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "envtune-agents", "0.1.0")
    metadata = next(tmp_path.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Python: >=3.99\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert any("wants >=3.99" in problem.what for problem in diagnose().problems)


def test_damaged_metadata_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    distribution(tmp_path, "langchain-odd", "not a version", "langchain-core", "langchain-core (>dev)")
    (tmp_path / "langchain_worse-1.dist-info").mkdir()
    (tmp_path / "langchain_worse-1.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert diagnose().healthy


def test_the_memory_of_a_model_is_estimated_at_each_precision(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    memory = diagnose(model=str(tmp_path), context=64).to_plain()["memory"]
    needs = {need["precision"]: need for need in memory["needs"]}
    assert set(needs) == {"fp32", "bf16", "fp16", "w16a32", "8bit", "4bit"}
    tied_head = 4 * 100 * 64  # a copy of its own on a CPU
    assert needs["fp32"]["weights"] - tied_head == 2 * needs["bf16"]["weights"] > needs["4bit"]["weights"] > 0
    assert {need["fits"] for need in needs.values()} <= {"CPU", "GPU"}
    assert needs["fp32"]["total"] == needs["fp32"]["weights"] + needs["fp32"]["cache"]


def test_a_wrong_model_path_is_a_sentence(tmp_path: Path, envtune: Envtune) -> None:
    with pytest.raises(WeightsError):
        diagnose(model=str(tmp_path / "nowhere"))
    assert envtune("doctor", "--context", "10").code == 2
    done = envtune("doctor", "--model", tmp_path / "nowhere")
    assert done.code == 2
    assert "Accepted: a folder" in done.err


def test_every_backend_that_is_installed_works() -> None:
    found = diagnose(probe=True)
    probes = {probe.name: probe for probe in found.probes or ()}
    assert probes["episode"].works
    assert [probe.says for probe in probes.values() if probe.works is False] == []
    assert all(probe.works is None or probe.says for probe in probes.values())


def test_backends_that_cannot_be_imported_are_findings(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object file')")
    (tmp_path / "llguidance.py").write_text("raise ImportError('wrong ELF class')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from envtune_agents.cli import main; main()"
    command = [sys.executable, "-c", program, "doctor", "--probe", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    problems = {problem["what"]: problem["next_step"] for problem in found["problems"]}
    assert done.returncode == 1
    assert "[local]" in problems["torch on the CPU: OSError: libtorch.so: cannot open shared object file"]
    assert "[grammar]" in problems["grammar: ImportError: wrong ELF class"]
    assert {probe["name"]: probe["works"] for probe in found["probes"]}["episode"]


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("1.0.0rc1", ">=1.0,<2", False),
        ("1.5.dev3", ">=1.0,<2", True),
        ("2.0", ">=1.0,<2", False),
        ("anything", "", True),
        ("anything", ">=1", False),
        ("1", "", True),
    ],
)
def test_ranges(version: str, wanted: str, fits: bool) -> None:
    assert in_range(version, wanted) is fits


def test_a_member_of_the_family_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "langgraph-odd", "1.0", "langchain-nowhere", "nowhere-at-all")
    monkeypatch.syspath_prepend(str(tmp_path))
    ((what, _),) = conflicts()
    assert what == "langgraph-odd 1.0 wants langchain-nowhere, but it is not installed."


def test_optional_parts_of_an_integration_are_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "envtune-new", "0.1", "rich", "not-there; extra == 'more'")
    metadata = next(tmp_path.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + "Provides-Extra: more\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    states = {feature.name: feature.state for feature in diagnose().features}
    assert (states["new"], states["new[more]"]) == ("ready", "missing")


def test_the_families_of_this_environment_fit_together() -> None:
    assert list(conflicts()) == []


def test_install_lines_name_the_checkout_and_survive_a_space() -> None:
    assert install_line("envtune-nowhere").endswith("envtune-nowhere")
    line = install_line("envtune-agents", "quant")
    assert line.startswith("pip install ")
    assert "[quant]'" in line


def test_a_feature_is_ready_only_with_all_its_packages() -> None:
    there, absent = Package("a", ">=1", "1.2"), Package("b", "", None)
    assert Feature("x", "", "", (there,), present=True).state == "ready"
    assert Feature("x", "", "", (there, absent), present=True).state == "missing"
    assert Feature("x", "", "", (there,), present=False).state == "missing"
    assert Feature("x", "", "", (there, absent), present=True, required=True).state == "broken"

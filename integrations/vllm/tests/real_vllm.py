"""A real vLLM on this machine, started by `envtune serve`: `make integration-vllm` runs it, and records the exchange.

ENVTUNE_VLLM_PYTHON names the interpreter that has vLLM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exchanges import CASES, DATA, recorded, wider_tiny_qwen

from envtune_agents import ChatTransformers
from envtune_vllm import ChatServed

PYTHON = os.environ.get("ENVTUNE_VLLM_PYTHON", "")
PORT = "8124"
pytestmark = pytest.mark.skipif(not PYTHON, reason="make integration-vllm: an environment with vLLM")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wider_tiny_qwen(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "envtune_agents", "serve", str(folder), "--backend", "vllm", "--python", PYTHON]
    command += [
        "--name",
        "tiny",
        "--port",
        PORT,
        "--precision",
        "fp32",
        "--max-context",
        "2048",
        "--",
        "--enforce-eager",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    ready = any(line.startswith("ready: tiny at") for line in process.stdout)
    assert ready, "vLLM did not come up; its words are above"
    yield f"http://127.0.0.1:{PORT}"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0


def test_it_samples_what_our_engine_samples(address: str, folder: Path) -> None:
    local = ChatTransformers(model=folder, precision="fp32", temperature=0, max_tokens=16)
    file = DATA / "vllm-0.32.json"
    with recorded(address, file) as proxy:
        served = ChatServed(model="tiny", base_url=proxy, tokenizer=folder, temperature=0, max_tokens=16)
        replies = {name: ask(served) for name, ask in CASES.items()}
    file.write_text(file.read_text().replace(str(folder), "/models/tiny"))
    for name in CASES:
        trace = replies[name].response_metadata["token_trace"]
        if name in ("sampled", "a demanded answer"):  # by their random numbers, and with their spelling in tokens
            continue
        own = CASES[name](local).response_metadata["token_trace"]
        assert trace["prompt_token_ids"] == own["prompt_token_ids"]
        assert trace["completion_token_ids"] == own["completion_token_ids"]
        assert trace["logprobs"] == pytest.approx(own["logprobs"], abs=1e-3)

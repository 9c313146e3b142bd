"""Foreign servers: their exact command lines, what is refused before they start, waiting for them and ending them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envtune_agents.cli import app as cli
from envtune_agents.errors import MissingDependencyError, ServerError, TaskError, WeightsError
from envtune_agents.serve import ServePlan, serve, server_command
from envtune_agents.serve.installed import check_installed
from envtune_agents.serve.ports import check_port
from envtune_agents.testing import tiny_qwen


def test_the_commands_of_foreign_servers(folder: Path, tmp_path: Path) -> None:
    plan = {"model": str(folder), "name": "tiny", "max_context": 1024, "adapters": {"tuned": "/a"}, "python": "python"}
    vllm = server_command(ServePlan(backend="vllm", precision="bf16", extra=["--seed", "1"], **plan))
    assert vllm[:5] == ["python", "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    assert " ".join(vllm[5:]) == (
        "--served-model-name tiny --host 127.0.0.1 --port 8000 --dtype bfloat16 --enable-auto-tool-choice "
        "--tool-call-parser hermes --logprobs-mode processed_logprobs --enable-prompt-tokens-details "
        "--structured-outputs-config.backend guidance --max-model-len 1024 --enable-lora --lora-modules tuned=/a "
        "--seed 1"
    )
    sglang = server_command(ServePlan(backend="sglang", **plan))
    assert " ".join(sglang) == (
        f"python -m sglang.launch_server --model-path {folder} --served-model-name tiny --host 127.0.0.1 --port 8000 "
        "--dtype auto --tool-call-parser qwen25 --grammar-backend llguidance --context-length 1024 --enable-lora "
        "--lora-paths tuned=/a"
    )
    unseen = [("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder"), ("Qwen/Qwen3-4B-Instruct-2507", "hermes")]
    for model, parser in unseen:  # nothing is fetched to print a command
        assert f"--tool-call-parser {parser}" in " ".join(server_command(ServePlan(model, "vllm")))
    coder = tiny_qwen(tmp_path / "coder", chat_template="{{ tools }} <function=name> {{ messages }}")
    for backend in ("vllm", "sglang"):
        command = server_command(ServePlan(str(coder), backend))
        assert command[command.index("--tool-call-parser") + 1] == "qwen3_coder"


def test_what_can_never_be_served_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"Unknown backend 'tgi'\. Known: transformers, vllm, sglang"):
        ServePlan(str(folder), "tgi")
    with pytest.raises(WeightsError, match="vllm is not started at precision '4bit'"):
        ServePlan(str(folder), "vllm", precision="4bit")
    gguf = folder.parent / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(WeightsError, match="Use --backend transformers"):
        ServePlan(str(gguf), "sglang")
    with pytest.raises(ServerError, match="Wanted: an address of this machine"):
        check_port("203.0.113.1", 8000)


def test_a_backend_that_is_not_there_is_named_with_its_install_line(folder: Path) -> None:
    with pytest.raises(
        MissingDependencyError, match=r"(?s)sglang is not installed for .*--python \.venv-sglang/bin/python"
    ):
        check_installed(ServePlan(str(folder), "sglang"))
    with pytest.raises(MissingDependencyError, match="'/no/python' cannot be run"):
        check_installed(ServePlan(str(folder), "vllm", python="/no/python"))


def old_vllm(folder: Path, body: str) -> Path:
    """An interpreter that has a package called vllm, whose server is `body`."""
    site = folder / "site"
    for place, text in {
        "vllm/__init__.py": "",
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/cli/__init__.py": "",
        "vllm/entrypoints/cli/main.py": body,
        "vllm-0.32.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n",
    }.items():
        (site / place).parent.mkdir(parents=True, exist_ok=True)
        (site / place).write_text(text)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


HEALTHY = """
import http.server, signal, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass

def stop(*_):
    print("child stopped", flush=True)
    sys.exit(3)

signal.signal(signal.SIGTERM, stop)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_foreign_server_is_waited_for_and_stopped_by_our_signal(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = ServePlan(str(folder), "vllm", port=free_port(), python=str(old_vllm(tmp_path, HEALTHY)))
    seen: list[str] = []

    def ready(plan: ServePlan) -> None:
        seen.append(plan.url)
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(plan, ready=ready, start_s=60) == 0
    assert seen == [plan.url]
    assert "child stopped" in capfd.readouterr().out


def test_a_foreign_server_that_dies_or_never_comes_up_is_told(folder: Path, tmp_path: Path) -> None:
    dying = old_vllm(tmp_path / "dying", "raise SystemExit(7)")
    with pytest.raises(ServerError, match=r"(?s)exit code 7 before it was healthy.*--max-context"):
        serve(ServePlan(str(folder), "vllm", port=free_port(), python=str(dying)), ready=print)
    silent = old_vllm(tmp_path / "silent", "import time; time.sleep(600)")
    with pytest.raises(ServerError, match="not healthy after 1 seconds"):
        serve(ServePlan(str(folder), "vllm", port=free_port(), python=str(silent)), ready=print, start_s=1)


def test_the_command_prints_the_exact_line_and_refuses_with_a_sentence(folder: Path) -> None:
    dry = CliRunner().invoke(cli, ["serve", str(folder), "--backend", "vllm", "--dry-run", "--", "--seed", "1"])
    assert dry.exit_code == 0
    assert dry.stdout.strip().endswith("--structured-outputs-config.backend guidance --seed 1")
    wrong = CliRunner().invoke(cli, ["serve", str(folder), "--adapter", "tuned"])
    assert isinstance(wrong.exception, TaskError)
    missing = CliRunner().invoke(cli, ["serve", str(folder / "nothing")])
    assert isinstance(missing.exception, WeightsError)

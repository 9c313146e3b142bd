"""Start the server of this folder after looking whether it can work: `python serve.py`, from anywhere.

What would only show later, as a traceback or in silence, is one sentence on stderr and exit code 2: a model that is not
there, a port in use, a folder that cannot be written, packages that do not fit together. Then `langgraph dev` takes the
place of this process, so that signals reach it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from partshop.settings import Settings

from envtune_agents.doctor import diagnose
from envtune_agents.errors import EnvTuneError, MissingDependencyError, TaskError
from envtune_agents.weights.source import find_weights

HERE = Path(__file__).resolve().parent
NEEDED = {
    "langgraph_api": "pip install -r requirements.txt",
    "envtune_langchain": "pip install -e integrations/langchain",
}
DEFAULTS = {
    "LOG_JSON": "true",
    "LANGSMITH_HIDE_INPUTS": "true",
    "LANGSMITH_HIDE_OUTPUTS": "true",
    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
    "LANGGRAPH_NO_VERSION_CHECK": "true",
}
"""Environment variables of the server, where you set no others."""


def main() -> None:
    """Check, then serve."""
    try:
        arguments = prepared(Settings.from_environment())
    except EnvTuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.execv(sys.executable, [sys.executable, "-m", "langgraph_cli", "dev", *arguments])


def prepared(settings: Settings) -> list[str]:
    """The arguments of `langgraph dev`, with the environment and the current folder as it wants them."""
    check_packages()
    os.environ["ENVTUNE_MODEL"] = found_model(settings.model)
    check_port(settings.host, settings.port)
    check_folder(HERE / ".langgraph_api")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.chdir(HERE)
    where = ["--host", settings.host, "--port", str(settings.port)]
    return ["--no-browser", "--no-reload", *where, "--n-jobs-per-worker", str(settings.concurrency)]


def check_packages() -> None:
    """Raises for packages that are missing or do not fit together, with the line that mends it."""
    for package, line in NEEDED.items():
        if find_spec(package) is None:
            raise MissingDependencyError(f"The server needs the package '{package}'. Install it with:\n  {line}")
    for problem in diagnose().problems:
        raise MissingDependencyError(f"{problem.what}\n  {problem.next_step}")


def found_model(model: str) -> str:
    """The model, by a name that holds in every folder; raises `WeightsError` when there is none."""
    find_weights(model)
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def check_port(host: str, port: int) -> None:
    """Raises when the address is taken: `langgraph dev` would take another port without being asked."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TaskError(
                f"Cannot listen on {host}:{port} ({error.strerror}). End what uses it, or set PORT to another one."
            ) from None


def check_folder(folder: Path) -> None:
    """Raises when the server could not keep its threads in `folder`: it would lose them in silence."""
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise TaskError(
            f"Cannot write to {folder} ({error.strerror}). The server keeps its threads there: make the folder "
            "writable for this user, or copy the example to one that is."
        ) from None


if __name__ == "__main__":
    main()

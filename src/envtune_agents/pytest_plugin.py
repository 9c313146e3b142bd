"""For pytest: `evaluation`, a fixture that evaluates an agent and shows the table when the test fails.

Mount it in your `conftest.py`; nothing is loaded before a test asks for it:

    pytest_plugins = ["envtune_agents.pytest_plugin"]

    def test_the_assistant_is_as_good_as_ever(evaluation):
        report = evaluation(build_assistant, TASKS, Shop)
        assert not report.worse_than(0.8)

`--evaluation-out FOLDER` keeps each test's report and rollouts there, so that an interrupted run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from envtune_agents.evaluate import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that keeps reports."""
    parser.addoption(
        "--evaluation-out",
        metavar="FOLDER",
        help="keep the report and rollouts of every test that evaluates, in a folder of its own in FOLDER",
    )


@pytest.fixture
def evaluation(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """`envtune_agents.evaluate`, whose table stands in the test's output when the test fails."""
    from envtune_agents.evaluate import evaluate

    kept = request.config.getoption("--evaluation-out")
    name = re.sub(r"[^\w.-]+", "-", request.node.name)

    def run(*arguments: Any, **options: Any) -> Report:
        if kept:
            options.setdefault("out", Path(kept) / name)
        report = evaluate(*arguments, **options)
        request.node.add_report_section("call", "evaluation", f"{report}\n")
        return report

    return run

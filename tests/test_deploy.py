"""The example in examples/deploy as far as it goes without a server; `make deploy-test` runs the rest."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from langchain_core.tools import tool

from envtune_agents.errors import TaskError
from envtune_agents.testing import ScriptedChatModel, calls_message

DEPLOY = Path(__file__).parents[1] / "examples" / "deploy"


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("envtune_langchain")
    monkeypatch.syspath_prepend(str(DEPLOY))
    monkeypatch.setenv("ENVTUNE_MODEL", "smollm2")
    from partshop import agent

    yield agent
    for name in [name for name in sys.modules if name.split(".")[0] == "partshop"]:
        del sys.modules[name]


def test_the_files_that_the_configuration_names_are_there() -> None:
    config = json.loads((DEPLOY / "langgraph.json").read_text())
    for place in (*config["graphs"].values(), config["http"]["app"]):
        file, _, name = place.partition(":")
        assert re.search(rf"^{name} = ", (DEPLOY / file).read_text(), re.M), place


def test_what_the_image_copies_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if word[:2] != "--"]
    assert len(copied) > 8
    assert all((DEPLOY.parents[1] / name).exists() for name in copied)
    assert lines.index("USER agent") < next(i for i, line in enumerate(lines) if line.startswith("CMD"))


def test_every_variable_is_documented_and_checked(agent: ModuleType) -> None:
    from partshop.settings import Settings

    readme = (DEPLOY / "README.md").read_text()
    fields = [name for name in Settings.__slots__ if name not in ("host", "port")]
    assert all(f"`ENVTUNE_{name.upper()}`" in readme for name in fields)
    assert Settings.from_environment({}) == Settings()
    given = {"ENVTUNE_MODEL": "m", "ENVTUNE_TEMPERATURE": "0.5", "ENVTUNE_LOG_TEXT": "1", "PORT": "80"}
    assert Settings.from_environment(given) == Settings("m", temperature=0.5, log_text=True, port=80)
    for name, value in [("ENVTUNE_HINT_LEVEL", "4"), ("ENVTUNE_CONCURRENCY", "0"), ("PORT", "http"), ("PORT", "0")]:
        with pytest.raises(TaskError, match=f"{name} is '{value}'. Wanted: a whole number from"):
            Settings.from_environment({name: value})


def test_a_tool_name_with_spaces_is_refused_with_a_better_one(agent: ModuleType) -> None:
    @tool("find a part")
    def finder(name: str) -> str:
        """Find."""
        return name

    with pytest.raises(TaskError, match=r"'find a part' is no name for a tool.*'find_a_part'"):
        agent.make_agent(ScriptedChatModel(script=[]), agent.settings, [finder])


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log_holds_what_was_said_only_where_that_is_wanted(
    agent: ModuleType, caplog: pytest.LogCaptureFixture, log_text: bool
) -> None:
    from partshop.settings import Settings

    script = [calls_message(("find_part", {"title": "zebra lamp"}), position=1), "No zebra here."]
    graph = agent.make_agent(ScriptedChatModel(script=script), Settings(stage="canary", log_text=log_text))
    with caplog.at_level(logging.INFO, logger="partshop"):
        graph.invoke({"messages": [("user", "A zebra lamp, please.")]})
    asked, called, answered = caplog.records
    assert (asked.msg, called.msg, answered.msg) == ("model call", "tool call", "model call")
    assert (called.stage, called.tool, called.failure) == ("canary", "find_part", "unknown_argument")
    assert (called.hint_rule, called.hint_level) == ("schema.unknown_argument", 3)
    assert ("zebra" in str([vars(record) for record in caplog.records])) is log_text


def test_a_call_that_cannot_be_read_is_logged_with_its_reply(
    agent: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    broken = '<tool_call>\n{"name": "find_part", "arguments": {"name": \n</tool_call>'
    graph = agent.make_agent(ScriptedChatModel(script=[broken, "I cannot."]), agent.settings)
    with caplog.at_level(logging.INFO, logger="partshop"):
        graph.invoke({"messages": [("user", "A lamp, please.")]})
    asked, called, answered = caplog.records
    assert (asked.calls, asked.unreadable_calls) == (0, 1)
    assert called.hint_rule == "schema.malformed_call"
    assert (answered.calls, answered.unreadable_calls) == (0, 0)

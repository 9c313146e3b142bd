"""The graph that the server serves: `create_agent` with a local checkpoint, hints for serving, and its records.

Nothing is loaded here: the server's start loads the weights (`health.py`). There is no checkpointer: the server has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from envtune_agents import ChatTransformers, HintDial, HintEngine
from envtune_langchain import HintMiddleware
from partshop.records import CallRecords
from partshop.settings import Settings
from partshop.tools import TOOLS, checked

PROMPT = "You sell spare parts. Look up a part's id before you reserve it."
CALL_TIMEOUT_S = 20.0


def make_agent(model: BaseChatModel, settings: Settings, tools: Sequence[BaseTool] = TOOLS) -> Any:
    """The agent; every run carries the stage and the hint level as metadata and tags, for LangSmith and OpenTelemetry.

    Raises `TaskError` when a tool's name is one that models cannot call.
    """
    hints = HintEngine.for_serving(dial=HintDial(settings.hint_level))
    middleware = [
        HintMiddleware(hints, call_timeout_s=CALL_TIMEOUT_S),
        CallRecords(settings.stage, log_text=settings.log_text),
    ]
    agent = create_agent(model, checked(tools), system_prompt=PROMPT, middleware=middleware)
    level = settings.hint_level
    return agent.with_config(
        metadata={"envtune_stage": settings.stage, "envtune_hint_level": level},
        tags=[f"stage:{settings.stage}", f"hints:{level}"],
    )


settings = Settings.from_environment()
model = ChatTransformers(
    model=settings.model,
    precision=settings.precision,
    temperature=settings.temperature,
    max_tokens=settings.max_tokens,
    parse_mode="repair",
)
graph = make_agent(model, settings)

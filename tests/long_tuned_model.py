"""The adapter that comes with the package calls tools, in a run of the small real model of its own."""

from __future__ import annotations

import pytest

from envtune_agents import ChatTransformers, Playground, run_episode
from envtune_agents.playground import generated_tasks
from envtune_agents.types import FailureKind
from envtune_agents.weights.source import TUNED_MODEL


@pytest.mark.model
async def test_it_calls_visible_tools_without_being_held_to_a_grammar() -> None:
    chat = ChatTransformers(model=TUNED_MODEL, precision="fp32", temperature=0, max_tokens=48)
    rollout = await run_episode(chat, Playground(generated_tasks(7, n=1)[0]), max_steps=1)
    kinds = [o.failure and o.failure.kind for turn in rollout.turns for step in turn.steps for o in step.outcomes]
    assert kinds
    assert not {FailureKind.MALFORMED_CALL, FailureKind.UNKNOWN_TOOL} & set(kinds), kinds

"""A checkpoint that plays the shop's agent for two user messages: small enough for any machine, real to the last token.

It is taught by the very agent that is deployed: rules answer in the engine's place, and what they were asked and said
becomes the lessons.
"""

from __future__ import annotations

from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver
from partshop.agent import make_agent
from partshop.settings import Settings

from envtune_agents.qwen import format_call
from envtune_agents.testing import TaughtModel, overfit, tiny_qwen

FIRST = "Two of B-17, zebra customer."
SECOND = "And one L-40."


def said(prompt: str) -> str:
    """A clumsy shop assistant who does what a hint tells him."""
    *_, last = prompt.split("<|im_start|>")[:-1]
    if "reserved 2 x brake pad" in last:
        return "Two brake pads are reserved."
    if "only 0 of lamp left" in last:
        return "The lamp is sold out."
    if SECOND in last:
        return format_call("reserve_part", {"part_id": "L-40", "count": 1})
    right_name = "part_id" if "probably means part_id" in last else "part"
    return format_call("reserve_part", {right_name: "B-17", "count": 2})


def taught_checkpoint(folder: Path) -> Path:
    """The checkpoint in `folder`; takes some seconds."""
    base = tiny_qwen(folder / "base")
    model = TaughtModel(model=str(base), answer=said, precision="fp32", temperature=0, max_tokens=96)
    agent = make_agent(model, Settings())
    agent.checkpointer = InMemorySaver()
    config = {"configurable": {"thread_id": "1"}}
    for text in (FIRST, SECOND):
        agent.invoke({"messages": [("user", text)]}, config)
    return overfit(base, folder / "pupil", model.lessons.items())

"""The example as it is deployed: `langgraph dev` as a process, driven over HTTP, stopped and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from langgraph_sdk import get_client
from pupil import FIRST, SECOND
from server import Collector, Server

Start = Callable[..., Server]


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def text_of(messages: list[dict[str, Any]], kind: str) -> list[str]:
    return [message["content"] for message in messages if message["type"] == kind and message["content"]]


async def test_a_failed_call_is_hinted_and_healed_while_the_client_listens(start: Start) -> None:
    client = get_client(url=start().wait().url)
    thread = (await client.threads.create())["thread_id"]
    events = [
        event
        async for event in client.runs.stream(thread, "agent", input=said(FIRST), stream_mode=["updates", "messages"])
    ]
    kinds = {event.event.split("/")[0] for event in events}
    assert {"metadata", "updates", "messages"} <= kinds
    assert len([event for event in events if event.event == "messages/partial"]) > 5  # token by token
    messages = (await client.threads.get_state(thread))["values"]["messages"]
    first, second = text_of(messages, "tool")
    assert "'part' probably means part_id" in first
    assert second == "reserved 2 x brake pad"
    assert text_of(messages, "ai") == ["Two brake pads are reserved."]


async def test_a_conversation_goes_on_after_the_server_was_stopped(start: Start) -> None:
    before = start().wait()
    thread = (await get_client(url=before.url).threads.create())["thread_id"]
    await get_client(url=before.url).runs.wait(thread, "agent", input=said(FIRST))
    before.end()

    client = get_client(url=start().wait().url)
    messages = (await client.threads.get_state(thread))["values"]["messages"]
    assert text_of(messages, "ai") == ["Two brake pads are reserved."]
    state: Any = await client.runs.wait(thread, "agent", input=said(SECOND))
    assert text_of(state["messages"], "human") == [FIRST, SECOND]
    assert text_of(state["messages"], "ai")[-1] == "The lamp is sold out."
    history = await client.threads.get_history(thread, limit=50)
    assert len({tuple(one["next"]) for one in history}) > 2  # every step can be gone back to


async def test_log_and_trace_name_the_rules_and_hold_no_word_that_was_said(start: Start) -> None:
    collector = Collector()
    server = start(ENVTUNE_STAGE="canary", **collector.variables).wait()
    client = get_client(url=server.url)
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "agent", input=said(FIRST))
    server.end()  # what was not sent yet is sent now
    collector.close()

    failed, done = server.lines("tool call")
    assert failed["hint_rule"] == "schema.unknown_argument"
    assert (failed["hint_level"], failed["stage"], failed["thread_id"]) == (3, "canary", thread)
    assert (done["tool"], done["failure"], done["hint_rule"]) == ("reserve_part", None, None)
    assert [line["calls"] for line in server.lines("model call")] == [1, 1, 0]

    assert [name for name, _ in collector.spans].count("agent") == 1
    for _, values in collector.spans:
        assert "canary" in values["langsmith.metadata.envtune_stage"]
        assert "3" in values["langsmith.metadata.envtune_hint_level"]
    (hinted,) = (values for _, values in collector.spans if "langsmith.metadata.envtune_hint_rules" in values)
    assert "schema.unknown_argument" in hinted["langsmith.metadata.envtune_hint_rules"]
    assert "rule:schema.unknown_argument" in hinted["langsmith.span.tags"]
    for words in ("zebra", "brake pad", "B-17"):
        assert words not in server.log.read_text()
        assert words not in str(collector.spans)


async def test_no_more_runs_play_at_once_than_are_allowed(start: Start) -> None:
    server = start(ENVTUNE_CONCURRENCY="2").wait()
    client = get_client(url=server.url)
    threads = [(await client.threads.create())["thread_id"] for _ in range(5)]
    states: Any = await asyncio.gather(*(client.runs.wait(one, "agent", input=said(FIRST)) for one in threads))
    assert [text_of(state["messages"], "ai") for state in states] == [["Two brake pads are reserved."]] * 5
    server.end()
    spans = [
        (datetime.fromisoformat(line["run_started_at"]), datetime.fromisoformat(line["run_ended_at"]))
        for line in server.lines("Background run succeeded")
    ]
    assert len(spans) == 5
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) <= 2

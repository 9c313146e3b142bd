from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from envtune_agents.errors import RecordError
from envtune_agents.graph import build_agent_graph
from envtune_agents.rollout import TapeRecorder, from_line, to_line
from envtune_agents.tape import branches_of, check_tape, tape_facts, tape_of, tape_of_messages, tape_problems
from envtune_agents.testing import ScriptedChatModel, tiny_qwen
from envtune_agents.testing.token_script import TokenScript, scripted_logprob, tokenizer_only
from envtune_agents.types import TOKEN_TRACE_KEY, Rollout, RolloutStep, RolloutTurn, StopReason
from envtune_agents.weights import Weights

CALL = '<tool_call>\n{"arguments":{"city":"Oslo"},"name":"weather"}\n</tool_call>'


def step(prompt: tuple[int, ...], said: tuple[int, ...], *, constrained: bool = False) -> RolloutStep:
    return RolloutStep("".join(map(chr, said)), prompt, said, tuple(-token / 100 for token in said), constrained)


def rollout(*turns: tuple[RolloutStep, ...]) -> Rollout:
    played = tuple(RolloutTurn("please", steps) for steps in turns)
    return Rollout("t/0/0", "t", "base", 0, 0, "m", "", 0, played, len(turns), 1.0, StopReason.DONE)


def decode(ids: Any) -> str:
    return "".join(map(chr, ids))


def test_a_conversation_that_goes_on_exactly_is_one_branch() -> None:
    played = rollout((step((1, 2), (65, 66)), step((1, 2, 65, 66, 9), (67,))), (step((1, 2, 65, 66, 9, 67, 8), (68,)),))
    (branch,) = branches_of(played)
    assert branch.prompt_ids == (1, 2)
    assert branch.completion_ids == (65, 66, 9, 67, 8, 68)
    assert branch.loss_mask == (1, 1, 0, 1, 0, 1)
    assert branch.logprobs == (-0.65, -0.66, 0.0, -0.67, 0.0, -0.68)
    assert branch.steps == ((0, 0), (0, 1), (1, 0))
    assert [branch.said(span) for span in branch.spans] == [(65, 66), (67,), (68,)]
    facts = check_tape(played, decode=decode)
    assert (facts.branches, facts.drifted, facts.sampled_tokens, facts.on_policy_tokens) == (1, 0, 4, 4)
    assert facts.note == ""


def test_a_prompt_that_drifts_opens_a_branch_and_is_counted() -> None:
    played = rollout((step((1, 2), (65, 66)), step((1, 2, 65, 70, 9), (67,)), step((1, 2, 65, 70, 9, 67, 3), (68,))))
    tape = tape_of(played)
    assert [branch.steps for branch in tape.branches] == [((0, 0),), ((0, 1), (0, 2))]
    assert tape.branches[1].prompt_ids == (1, 2, 65, 70, 9)
    assert tape.drifted == 1
    assert check_tape(played).drifted == 1


def test_constrained_replies_are_off_policy() -> None:
    played = rollout((step((1,), (65, 66), constrained=True), step((1, 65, 66), (67,))))
    (branch,) = branches_of(played)
    assert branch.loss_mask == (1, 1, 1)
    assert branch.on_policy_mask == (0, 0, 1)
    assert check_tape(played).on_policy_tokens == 1
    limited = rollout((step((1,), (65,), constrained=True),))
    assert "grammar limited every reply" in check_tape(limited).note


def test_a_rollout_without_a_token_says_why() -> None:
    assert branches_of(rollout((RolloutStep("hi"),))) == ()
    facts = check_tape(rollout((RolloutStep("hi"),)))
    assert "reports no token ids" in facts.note
    assert (facts.untraced, facts.broken) == (1, False)
    assert "no model call was finished" in check_tape(rollout()).note


def test_a_call_without_tokens_does_not_break_the_run() -> None:
    played = rollout((step((1,), (65,)), RolloutStep("untraced"), step((1, 65, 9, 9), (66,))))
    tape = tape_of(played)
    assert len(tape.branches) == 1
    assert (tape.untraced, tape.drifted) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprobs": (-0.1,)}, "log-probabilities"),
        ({"logprobs": (-0.1, float("nan"))}, "finite"),
        ({"logprobs": (-0.1, 0.5)}, "at most 0"),
        ({"prompt_token_ids": ()}, "without a prompt"),
        ({"prompt_token_ids": (-1,)}, "negative"),
        ({"reply": "AC"}, "decode to 'AB'"),
    ],
)
def test_a_broken_tape_is_refused_and_says_where(changes: dict[str, Any], says: str) -> None:
    broken = rollout((dataclasses.replace(step((1,), (65, 66)), **changes),))
    with pytest.raises(RecordError, match=says):
        check_tape(broken, decode=decode)
    facts = tape_facts(broken, decode=decode)
    assert facts.broken
    assert says in facts.note
    assert list(tape_problems(broken, decode=decode))


def test_an_end_token_is_not_part_of_the_reply() -> None:
    ended = rollout((dataclasses.replace(step((1,), (65, 66)), reply="A"),))
    assert not check_tape(ended, decode=decode).broken


# --- any graph, unchanged ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return tokenizer_only(str(tiny_qwen(tmp_path_factory.mktemp("tiny"))))


def scripted(weights: Weights, *script: str) -> TokenScript:
    return TokenScript(model="scripted", script=script, scripted_weights=weights)


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"It rains in {city}."


def test_messages_of_a_deployed_graph_are_one_branch(weights: Weights) -> None:
    graph = build_agent_graph(scripted(weights, CALL, "Rain."), tools=[weather], hints=0)
    first = graph.invoke({"messages": [HumanMessage("Weather?")]})["messages"]
    messages = graph.invoke({"messages": [*first, HumanMessage("And now?")]})["messages"]
    tape = tape_of_messages(messages)
    (branch,) = tape.branches
    assert branch.steps == ((0, 0), (0, 1), (1, 0))
    assert weights.decode(branch.said(branch.spans[0])[:-1]) == CALL
    for token, mask, logprob in zip(branch.completion_ids, branch.loss_mask, branch.logprobs, strict=True):
        assert logprob == (scripted_logprob(token) if mask else 0.0)
    assert (tape.drifted, tape.untraced) == (0, 0)


class Both(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def test_parallel_branches_train_each_token_once(weights: Weights) -> None:
    model = scripted(weights, "A plan.", "One way.", "And more.")

    def ask(state: Both) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    def way(words: str) -> Any:
        async def node(state: Both) -> dict[str, Any]:
            asked = [*state["messages"], HumanMessage(words)]
            reply = await model.ainvoke(asked)
            return {"messages": [reply, await model.ainvoke([*asked, reply, HumanMessage("more")])]}

        return node

    builder = StateGraph(Both)
    builder.add_node("plan", ask)
    builder.add_node("left", way("left"))
    builder.add_node("right", way("right"))
    builder.add_edge(START, "plan")
    for side in ("left", "right"):
        builder.add_edge("plan", side)
        builder.add_edge(side, END)
    messages = asyncio.run(builder.compile().ainvoke({"messages": [HumanMessage("Go")]}))["messages"]
    tape = tape_of_messages(messages)
    assert sorted(len(branch.spans) for branch in tape.branches) == [2, 3]
    said = [weights.decode(branch.said(span)[:-1]) for branch in tape.branches for span in branch.spans]
    assert sorted(said) == sorted(["A plan.", "One way.", "And more.", "One way.", "And more."])
    assert tape.drifted == 0


def test_a_recorder_sees_a_sub_agent_that_the_state_does_not_show(weights: Weights) -> None:
    helper = build_agent_graph(scripted(weights, CALL, "It rains."), tools=[weather], hints=0)

    @tool
    def ask_helper(question: str, config: RunnableConfig) -> str:
        """Ask the helper."""
        return str(helper.invoke({"messages": [HumanMessage(question)]}, config)["messages"][-1].text)

    call = '<tool_call>\n{"name": "ask_helper", "arguments": {"question": "Weather?"}}\n</tool_call>'
    graph = build_agent_graph(scripted(weights, call, "Wet."), tools=[ask_helper], hints=0)
    recorder = TapeRecorder()
    final = graph.invoke({"messages": [HumanMessage("Go")]}, {"callbacks": [recorder]})
    assert len(tape_of_messages(final["messages"]).branches) == 1
    assert sorted(len(branch.spans) for branch in recorder.tape.branches) == [2, 2]
    said = {weights.decode(branch.said(span)[:-1]) for branch in recorder.tape.branches for span in branch.spans}
    assert said == {call, "Wet.", CALL, "It rains."}
    assert recorder.tape.drifted == 0


def test_a_model_without_traces_leaves_an_empty_tape() -> None:
    graph = build_agent_graph(ScriptedChatModel(script=["Hm."]), tools=[weather], hints=0)
    tape = tape_of_messages(graph.invoke({"messages": [HumanMessage("Go")]})["messages"])
    assert (tape.branches, tape.untraced) == ((), 1)
    assert tape_of_messages([AIMessage("x")]).untraced == 1


def test_an_edited_reply_is_rendered_anew_and_counted(weights: Weights) -> None:
    model = scripted(weights, CALL, "Rain.", "Sun.")
    asked = [HumanMessage("Weather?")]
    reply = model.invoke(asked)
    edited = reply.model_copy(update={"content": "I looked.", "tool_calls": []})
    second = model.invoke([*asked, edited, HumanMessage("And?")])
    tape = tape_of_messages([*asked, reply, second])
    assert len(tape.branches) == 2
    assert tape.drifted == 1


def test_drift_in_a_parallel_branch_and_in_a_sub_agent_is_counted_where_it_happens(weights: Weights) -> None:
    """Two sides play at the same time; one of them, a graph of its own, edits what its model said."""
    model = scripted(weights, "One.", "Two.")

    def talk(edit: bool) -> Any:
        async def node(state: Both) -> dict[str, Any]:
            asked = [*state["messages"], HumanMessage("An edited side." if edit else "A faithful side.")]
            reply = await model.ainvoke(asked)
            shown = reply.model_copy(update={"content": "Something else."}) if edit else reply
            return {"messages": [await model.ainvoke([*asked, shown, HumanMessage("And?")])]}

        return node

    sub_agent = StateGraph(Both).add_node("talk", talk(edit=True)).add_edge(START, "talk").compile()
    builder = StateGraph(Both).add_node("faithful", talk(edit=False)).add_node("edited", sub_agent)
    builder.add_edge(START, "faithful").add_edge(START, "edited")
    recorder = TapeRecorder()
    asked = {"messages": [HumanMessage("Go")]}
    final = asyncio.run(builder.compile().ainvoke(asked, {"callbacks": [recorder]}))
    tape = recorder.tape
    assert len(recorder.replies) == 4
    assert sorted(len(branch.spans) for branch in tape.branches) == [1, 1, 2]
    assert sum(sum(branch.loss_mask) for branch in tape.branches) == sum(
        len(reply.response_metadata[TOKEN_TRACE_KEY]["completion_token_ids"]) for reply in recorder.replies
    )
    assert tape.drifted == 1
    assert tape_of_messages(final["messages"]).drifted == 1


# --- BFCL ---


def benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "token_tape.py"
    spec = importlib.util.spec_from_file_location("token_tape", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["token_tape"] = module
    spec.loader.exec_module(module)
    return module


STYLES = ("canonical", "compact", "arguments_first", "text_between", "think", "several")


@pytest.mark.parametrize("style", STYLES)
async def test_bfcl_tapes_are_exact(style: str, weights: Weights) -> None:
    """A slice of `benchmarks/token_tape.py`, which plays all 800 entries in every style."""
    data = pytest.importorskip("envtune_bfcl")
    sweep = benchmark()
    assert tuple(sweep.STYLES) == STYLES
    start = STYLES.index(style)
    for task in data.load_tasks("all")[start::300]:
        for split_seed in (None, start):
            verdict = await sweep.judge(task, style, weights, template="auto", split_seed=split_seed)
            assert verdict.errors == ()
            assert verdict.drifted == 0
            assert verdict.branches == 1 + verdict.revealed


def test_facts_survive_the_file() -> None:
    played = rollout((step((1,), (65,)),))
    checked = dataclasses.replace(played, tape=check_tape(played))
    assert from_line(to_line(checked)).tape == checked.tape

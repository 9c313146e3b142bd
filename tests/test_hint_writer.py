from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage

from envtune_agents.errors import TaskError
from envtune_agents.hint_rules import load_rules
from envtune_agents.hint_writer import Fate, read_draft, read_judgement, truth_of, write_hints, written_rules
from envtune_agents.hint_writer.drafts import with_placeholders
from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.mining import open_todos
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import run_episode
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Rollout

TASK = playground_tasks(0, 1)[0]
PLAYGROUND = find_task_source("playground")
ROOM, ITEM = TASK.data["solution"][0][0][1]["room"], TASK.data["solution"][0][2][1]["item_id"]
GOOD = {
    "problem": "pick_item was refused, because the room is locked.",
    "constraint": "A room has to be unlocked before anything is picked from it.",
    "pointer": "Look at unlock_room.",
    "category": "state_prerequisite",
}
FINE = {"leaks": False, "explores": True, "actionable": True, "reason": "fine"}


def rollout() -> Rollout:
    locked = calls_message(("list_items", {"room": ROOM}), ("pick_item", {"item_id": ITEM, "count": 1}))
    model = ScriptedChatModel(script=[locked, "I give up."])
    return asyncio.run(run_episode(model, Playground(TASK), hints=HintEngine(rules=())))


ROLLOUT = rollout()


def says(reply: Any, heard: list[str] | None = None) -> ScriptedChatModel:
    def script(messages: list[BaseMessage]) -> AIMessage:
        if heard is not None:
            heard.append("\n".join(str(message.text) for message in messages))
        if isinstance(reply, Exception):
            raise reply
        return AIMessage(reply if isinstance(reply, str) else json.dumps(reply))

    return ScriptedChatModel(script=script)


async def fate(draft: Any, verdict: Any = FINE, **options: Any) -> Any:
    (hint,) = await write_hints([ROLLOUT], PLAYGROUND, says(draft), says(verdict), **options)
    return hint


async def test_an_accepted_hint_becomes_a_rule_to_review(tmp_path: Path) -> None:
    hint = await fate(GOOD)
    assert (hint.fate, hint.draft.category) == (Fate.ACCEPTED, "state_prerequisite")
    path = tmp_path / "drafts.yaml"
    path.write_text(written_rules([hint], "a", "b"))
    (rule,) = load_rules(path)
    assert rule.problem == "{tool} was refused, because the room is locked."
    assert rule.pointer == ("Look at {visible:unlock_room}.",)
    assert [text for _, text in open_todos(path) if "review" in text][-1] == (
        "# TODO review: written by a, accepted by b, state_prerequisite"
    )
    model = ScriptedChatModel(script=[calls_message(("pick_item", {"item_id": ITEM, "count": 1})), "Done."])
    played = await run_episode(model, Playground(TASK), hints=HintEngine((rule,), HintDial(3)))
    outcome = played.turns[0].steps[0].outcomes[0]
    assert outcome.hint is not None
    assert outcome.hint.text.endswith("Look at unlock_room.")


async def test_the_writer_never_sees_the_truth_and_the_judge_does() -> None:
    written: list[str] = []
    judged: list[str] = []
    city = TASK.data["solution"][2][0][1]["city"]
    await write_hints([ROLLOUT], PLAYGROUND, says(GOOD, written), says(FINE, judged))
    assert city not in written[0]
    assert "access denied" in written[0]
    assert "unlock_room" in written[0]
    assert TASK.turns[0] in written[0]
    assert city in judged[0]
    assert GOOD["pointer"] in judged[0]
    judged.clear()
    await write_hints([ROLLOUT], PLAYGROUND, says(GOOD), says(FINE, judged), truth=lambda task: None)
    assert city not in judged[0]


@pytest.mark.parametrize(
    ("draft", "verdict", "expected"),
    [
        (GOOD, {**FINE, "leaks": True}, Fate.LEAK),
        (GOOD, {**FINE, "explores": False}, Fate.NO_EXPLORATION),
        (GOOD, {**FINE, "actionable": False}, Fate.NOT_ACTIONABLE),
        (GOOD, "I think it is fine.", Fate.UNREADABLE_VERDICT),
        (GOOD, {**FINE, "leaks": "no"}, Fate.UNREADABLE_VERDICT),
        ("You should unlock the room.", FINE, Fate.UNREADABLE_DRAFT),
        ({**GOOD, "problem": ""}, FINE, Fate.UNREADABLE_DRAFT),
        ({**GOOD, "pointer": "x" * 1000}, FINE, Fate.UNREADABLE_DRAFT),
        ({**GOOD, "pointer": 3}, FINE, Fate.UNREADABLE_DRAFT),
        ({**GOOD, "pointer": "Ship it to Oslo."}, FINE, Fate.LEAK),
        ({**GOOD, "problem": f"{ITEM} is in a locked room."}, FINE, Fate.TOO_SPECIFIC),
        ({**GOOD, "pointer": "Use {name}."}, FINE, Fate.REFUSED),
        (ConnectionError("away"), FINE, Fate.ERROR),
        (GOOD, ConnectionError("away"), Fate.ERROR),
    ],
)
async def test_every_reply_has_a_fate(draft: Any, verdict: Any, expected: Fate) -> None:
    assert TASK.data["solution"][2][0][1]["city"] == "Oslo"
    hint = await fate(draft, verdict)
    assert hint.fate is expected
    assert load_rules(written_rules([hint] if hint.fate is Fate.ACCEPTED else [], "a", "b")) == ()


async def test_a_leak_the_judge_waves_through_is_found_by_comparing() -> None:
    heard: list[str] = []
    draft = {**GOOD, "pointer": "Ship it to Oslo."}
    (hint,) = await write_hints([ROLLOUT], PLAYGROUND, says(draft), says(FINE, heard))
    assert (hint.fate, heard) == (Fate.LEAK, [])
    assert "Oslo" in hint.note


async def test_what_cannot_be_restored_is_an_error_of_its_own() -> None:
    strange = Rollout(**{field: getattr(ROLLOUT, field) for field in ROLLOUT.__dataclass_fields__})
    object.__setattr__(strange, "turns", (type(ROLLOUT.turns[0])("Else.", ROLLOUT.turns[0].steps), *ROLLOUT.turns[1:]))
    (hint,) = await write_hints([strange], PLAYGROUND, says(GOOD), says(FINE))
    assert hint.fate is Fate.ERROR
    assert "Give the tasks with which" in hint.note
    others = TaskSource(load=lambda split, categories: playground_tasks(9, 3), environment=Playground)
    with pytest.raises(TaskError, match="None of the run's tasks"):
        await write_hints([ROLLOUT], others, says(GOOD), says(FINE))
    assert await write_hints([], PLAYGROUND, says(GOOD), says(FINE)) == []


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"Sure!\n```json\n{json.dumps(GOOD, indent=2)}\n```\nHope it helps {{}}.",
        f'<think>{{\'a\': 1}} maybe {{"problem": "no", "constraint": 3}}</think>{json.dumps(GOOD)}',
    ],
)
def test_an_answer_is_found_in_the_text_around_it(text: str) -> None:
    draft = read_draft(text)
    assert draft is not None
    assert draft.parts() == {key: GOOD[key] for key in ("problem", "constraint", "pointer")}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 50_000, "null", "3", '"x"', "{}", "\x00"])
def test_what_is_no_answer_is_none(text: str) -> None:
    assert read_draft(text) is None
    assert read_judgement(text) is None


def test_an_unknown_category_is_dropped() -> None:
    draft = read_draft(json.dumps({**GOOD, "category": ["x"]}))
    assert draft is not None
    assert draft.category == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'pick_item' failed", "{tool} failed"),
        ("Call unlock_room() first.", "Call {visible:unlock_room} first."),
        ("Use `unlock_room`.", "Use {visible:unlock_room}."),
        ("unlock_rooms is another word", "unlock_rooms is another word"),
        ("find the file", "find the file"),
        ("Call 'find' or find().", "Call {visible:find} or {visible:find}."),
        ("Call {visible:unlock_room}.", "Call {visible:unlock_room}."),
    ],
)
def test_tools_become_placeholders(text: str, expected: str) -> None:
    tools: dict[str, Any] = {"pick_item": {}, "unlock_room": {}, "find": {}}
    assert with_placeholders(text, "pick_item", tools) == expected


def test_the_truth_is_where_tasks_keep_it() -> None:
    assert truth_of(TASK) == TASK.data["solution"]
    bfcl = pytest.importorskip("envtune_bfcl")
    assert truth_of(bfcl.load_task("multi_turn_base_0"))[0][0].startswith("cd(")


async def test_leaks_are_found_in_bfcl_call_texts(tmp_path: Path) -> None:
    bfcl = pytest.importorskip("envtune_bfcl")
    task, source = bfcl.load_task("multi_turn_base_0"), find_task_source("bfcl")
    model = ScriptedChatModel(script=[calls_message(("cd", {"folder": "nowhere"})), "Done."])
    played = await run_episode(model, source.environment(task), hints=HintEngine(rules=()))
    texts = {
        "Call mkdir in temp": Fate.ACCEPTED,
        "Look for previous_report.pdf": Fate.LEAK,
        "Look around": Fate.ACCEPTED,
    }
    for text, expected in texts.items():
        (hint, *_) = await write_hints([played], source, says({**GOOD, "pointer": text}), says(FINE))
        assert hint.fate is expected, (text, hint.note)

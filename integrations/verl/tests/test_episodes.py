"""Episodes over verl's server client: the tape is what was sampled, the limits hold, a failure is no reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool

from envtune_agents import run_episode
from envtune_agents.errors import EngineError, RecordError, ScorerError
from envtune_agents.export.sft import messages_of
from envtune_agents.progress import FORMAT_REWARD
from envtune_agents.qwen import format_call
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import solution_model
from envtune_agents.types import Task
from envtune_verl import EnvTuneAgentLoop, EpisodeTerms, dataset_rows
from envtune_verl.outputs import summable
from envtune_verl.policy import ServedPolicy, ServerEngine, served_weights
from envtune_verl.testing import ScriptedClient, scripted_logprob, solution_replies

WEIGHTS_STEP = 7
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
EXTRA = {
    "acc", "progress", "format", "mix", "turns_closed", "steps", "calls", "failed_calls", "hints", "branches",
    "drifted", "truncated", "error",
}  # fmt: skip


class Faulty(ScriptedClient):
    """A server that fails as real ones do."""

    async def generate(self, request_id: str, **given: Any) -> Any:
        if error := self.faults.get("error"):
            raise error
        served = await super().generate(request_id, **given)
        return served.model_copy(update={"log_probs": None})


def task_of(category: str, turns: int = 1) -> Task:
    tasks = find_task_source("playground").load("train", [category])
    return next(task for task in tasks if len(task.turns) >= turns)


def played(
    model: Path,
    tokenizer: Any,
    task: Task,
    terms: EpisodeTerms | None = None,
    say: Callable[[Task], list[str]] = solution_replies,
    prompt_length: int = 1800,
    response_length: int = 3000,
    **faults: Any,
) -> tuple[Any, ScriptedClient]:
    """What the real loop class gives for one row, and the client that it asked."""
    client = (Faulty if faults else ScriptedClient)(tokenizer, {task.turns[0]: say(task)}, weights_step=WEIGHTS_STEP)
    client.faults = faults
    rollout = SimpleNamespace(prompt_length=prompt_length, response_length=response_length)
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout, model=SimpleNamespace(path=str(model))))
    row = dataset_rows([task], "playground", "train", terms)[0]

    async def run() -> Any:
        loop = EnvTuneAgentLoop(
            trainer_config=SimpleNamespace(config=config),
            server_manager=client,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=object,
            data_config=SimpleNamespace(config={}),
            hf_model_type="qwen3",
        )
        return await loop.run(dict(SAMPLING), raw_prompt=row["prompt"], session_id=1, global_steps=3, **row)

    return asyncio.run(run()), client


@pytest.mark.parametrize("category", ["base", "miss_param", "long_context"])
def test_the_tape_is_what_the_servers_saw_and_said(model: Path, tokenizer: Any, category: str) -> None:
    task = task_of(category, turns=2)
    output, client = played(model, tokenizer, task)
    whole = output.prompt_ids + output.response_ids
    assert output.prompt_ids == client.asked[0][1]
    assert all(whole[: len(prompt)] == prompt for _, prompt, _ in client.asked)
    said = [token for token, sampled in zip(output.response_ids, output.response_mask, strict=True) if sampled]
    spoken = [tokenizer.encode(text, add_special_tokens=False) for text in solution_replies(task)]
    assert said == [token for ids in spoken for token in [*ids, tokenizer.eos_token_id]]
    expected = [
        scripted_logprob(token) if mask else 0.0
        for token, mask in zip(output.response_ids, output.response_mask, strict=True)
    ]
    assert output.response_logprobs == pytest.approx(expected)
    assert len({request for request, _, _ in client.asked}) == 1
    assert output.reward_score == 1.0
    extra = output.extra_fields
    assert set(extra["reward_extra_info"]) == EXTRA
    assert (extra["reward_extra_info"]["acc"], extra["reward_extra_info"]["drifted"]) == (1.0, 0.0)
    assert extra["turn_scores"] == [1.0] * len(task.turns)
    assert extra["min_global_steps"] == extra["max_global_steps"] == WEIGHTS_STEP
    assert extra["rollout_id"] == f"{task.task_id}/3/1"
    assert output.num_turns == len(task.turns) + len(client.asked) + sum(map(len, task.data["solution"]))


def test_the_tape_equals_the_template_over_the_whole_conversation(model: Path, tokenizer: Any) -> None:
    task = task_of("base", turns=2)
    output, _ = played(model, tokenizer, task)
    playground = find_task_source("playground").environment
    world = playground(task)
    world.open_turn()
    tools = [convert_to_openai_tool(tool) for tool in world.tools()]
    rollout = asyncio.run(run_episode(solution_model([task]), playground(task)))
    text = tokenizer.apply_chat_template(messages_of(rollout.turns), tools=tools, tokenize=False).removesuffix("\n")
    assert tokenizer.decode(output.prompt_ids + output.response_ids) == text
    assert tokenizer.encode(text, add_special_tokens=False) == output.prompt_ids + output.response_ids


def test_tools_that_appear_late_open_a_second_row_with_the_same_reward(model: Path, tokenizer: Any) -> None:
    task = task_of("miss_func")
    outputs, _ = played(model, tokenizer, task)
    assert isinstance(outputs, list)
    assert [output.reward_score for output in outputs] == [1.0, 1.0]
    assert sum(sum(output.response_mask) for output in outputs) == sum(
        len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in solution_replies(task)
    )
    assert {output.extra_fields["reward_extra_info"]["branches"] for output in outputs} == {2.0}


def test_a_late_branch_with_a_long_prompt_keeps_the_limits(model: Path, tokenizer: Any) -> None:
    task = task_of("miss_func")
    free, _ = played(model, tokenizer, task)
    first, second = (len(output.prompt_ids) for output in free)
    assert first < second
    outputs, _ = played(model, tokenizer, task, prompt_length=first)
    whole = [output.prompt_ids + output.response_ids for output in outputs]
    assert whole == [output.prompt_ids + output.response_ids for output in free]
    assert [len(output.prompt_ids) for output in outputs] == [first, first]
    assert outputs[1].response_mask[: second - first] == [0] * (second - first)


def test_the_response_limit_ends_the_episode_as_a_truncation(model: Path, tokenizer: Any) -> None:
    task = task_of("base", turns=3)
    whole, _ = played(model, tokenizer, task)
    limit = len(whole.response_ids) // 2
    output, client = played(model, tokenizer, task, response_length=limit)
    assert len(output.response_ids) <= limit
    assert output.extra_fields["stop_reason"] == "context"
    assert output.extra_fields["reward_extra_info"]["truncated"] == 1.0
    assert 0 < output.reward_score < 1
    assert output.reward_score == summable(output.extra_fields["reward_extra_info"]["mix"])
    assert all(settings["max_tokens"] <= limit for _, _, settings in client.asked)


def test_training_samples_and_validation_shows_no_hint_and_only_scores(model: Path, tokenizer: Any) -> None:
    task = task_of("base")
    wrong = lambda task: [format_call("no_such_tool", {}), *solution_replies(task)]  # noqa: E731
    hinted, client = played(model, tokenizer, task, EpisodeTerms(hint_level=3), wrong)
    plain, _ = played(model, tokenizer, task, EpisodeTerms(reward=FORMAT_REWARD, validation=True), wrong)
    infos = [output.extra_fields["reward_extra_info"] for output in (hinted, plain)]
    assert [info["hints"] for info in infos] == [1.0, 0.0]
    assert [info["failed_calls"] for info in infos] == [1.0, 1.0]
    assert plain.reward_score == infos[1]["progress"]
    assert infos[1]["mix"] == pytest.approx(infos[1]["format"])
    assert client.asked[0][2]["temperature"] == 1.0


def test_no_trainable_token_is_an_error_in_training_and_a_zero_in_validation(model: Path, tokenizer: Any) -> None:
    task = task_of("base")
    with pytest.raises(ScorerError, match=r"no token to train on.*max_prompt_length"):
        played(model, tokenizer, task, prompt_length=50)
    output, _ = played(model, tokenizer, task, EpisodeTerms(validation=True), prompt_length=50)
    assert (output.reward_score, sum(output.response_mask)) == (0.0, 0)
    assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs) == 1


@pytest.mark.parametrize("faults", [{"error": RuntimeError("the server died")}, {"no_logprobs": True}])
def test_a_failed_episode_is_never_a_made_up_reward(model: Path, tokenizer: Any, faults: dict[str, Any]) -> None:
    task = task_of("base")
    with pytest.raises(ScorerError, match="has no reward, it ended with"):
        played(model, tokenizer, task, **faults)
    output, _ = played(model, tokenizer, task, EpisodeTerms(validation=True), **faults)
    assert output.reward_score == 0.0
    assert output.extra_fields["reward_extra_info"]["error"] == 1.0


def test_a_template_that_rewrites_replies_gives_a_row_for_each(model: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(model)
    last = "loop.last or messages[loop.index0 + 1].role == 'tool'"
    other.chat_template = tokenizer.chat_template.replace("(message.content or '')", f"('' if not ({last}) else '.')")
    assert other.chat_template != tokenizer.chat_template
    task = task_of("base", turns=2)
    outputs, _ = played(model, other, task)
    info = outputs[-1].extra_fields["reward_extra_info"]
    assert len(outputs) == info["branches"] > 1
    assert info["drifted"] == len(outputs) - 1
    sampled = [
        token
        for output in outputs
        for token, mask in zip(output.response_ids, output.response_mask, strict=True)
        if mask
    ]
    spoken = [other.encode(text, add_special_tokens=False) for text in solution_replies(task)]
    assert sampled == [token for ids in spoken for token in [*ids, other.eos_token_id]]


def test_a_row_without_a_plan_is_refused(model: Path, tokenizer: Any) -> None:
    loop = EnvTuneAgentLoop.__new__(EnvTuneAgentLoop)
    with pytest.raises(RecordError, match="write_dataset"):
        asyncio.run(loop.run(dict(SAMPLING), extra_info={"index": 0}))


def test_the_policy_is_asked_from_verls_event_loop_only(model: Path, tokenizer: Any) -> None:
    weights = served_weights(tokenizer, str(model), 100)
    policy = ServedPolicy.over(ServerEngine(ScriptedClient(tokenizer, {}), weights, "x", 10, 90))
    with pytest.raises(EngineError, match="ainvoke"):
        policy.invoke("Hello")
    with pytest.raises(EngineError, match=r"ServedPolicy\.over"):
        ServedPolicy(model="m").invoke("Hello")

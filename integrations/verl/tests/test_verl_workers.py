"""Our episodes in verl's real workers on a CPU: in this process, and in Ray processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from verl_batches import STAGE, batch_of, composed, tasks_of

from envtune_agents.curriculum import Stage
from envtune_agents.errors import ScorerError
from envtune_verl import EpisodeTerms, VerlSettings, dataset_rows, stage_overrides
from envtune_verl.overrides import StageFiles, agent_loop_entry
from envtune_verl.rewards import reward_groups
from envtune_verl.testing import ScriptedClient, playground_scripts, solution_replies

pytest.importorskip("verl")


def check_batch(output: Any, tokenizer: Any, n: int) -> None:
    """Every row is solved, and what is under its mask decodes to whole replies."""
    assert len(output) == n
    batch = output.batch
    assert batch["rm_scores"].sum(1).tolist() == [1.0] * n
    assert list(output.non_tensor_batch["acc"]) == [1.0] * n
    assert list(output.non_tensor_batch["drifted"]) == [0.0] * n
    assert (batch["rollout_log_probs"][batch["response_mask"] == 1] < 0).all()
    assert (batch["rollout_log_probs"][batch["response_mask"] == 0] == 0).all()
    for row in range(n):
        said = tokenizer.decode(batch["responses"][row][batch["response_mask"][row] == 1])
        replies = said.split("<|im_end|>")
        assert replies[-1] == ""
        assert all(reply == "Done." or reply.startswith("<tool_call>") for reply in replies[:-1])


def test_a_worker_plays_our_episodes(files: StageFiles, tokenizer: Any, config: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    client = ScriptedClient(tokenizer, playground_scripts(tasks_of("base", "miss_param")))
    worker = AgentLoopWorker(config, client)
    batch = batch_of(files.train, tokenizer, config)
    check_batch(asyncio.run(worker.generate_sequences(batch)), tokenizer, len(batch))
    assert {settings["max_tokens"] for _, _, settings in client.asked} == {512}
    assert {settings["temperature"] for _, _, settings in client.asked} == {1.0}


def test_validation_is_greedy_and_a_failure_counts_as_zero(files: StageFiles, tokenizer: Any, config: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    client = ScriptedClient(tokenizer, {})
    batch = batch_of(files.validation, tokenizer, config, validate=True)
    output = asyncio.run(AgentLoopWorker(config, client).generate_sequences(batch))
    assert list(output.non_tensor_batch["acc"]) == [0.0, 0.0]
    assert {settings["temperature"] for _, _, settings in client.asked} == {0}


def test_an_untrainable_rollout_fails_its_group(files: StageFiles, tokenizer: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    small = Stage("s", max_prompt_tokens=20, max_response_tokens=100, prompts=2, samples=2)
    config = composed(stage_overrides(small, VerlSettings(), files))
    batch = batch_of(files.train, tokenizer, config)
    with pytest.raises(ScorerError, match="no token to train on"):
        asyncio.run(AgentLoopWorker(config, ScriptedClient(tokenizer, {})).generate_sequences(batch))


def test_a_worker_leaves_the_rewards_that_adaptive_help_wants(
    files: StageFiles, tokenizer: Any, tmp_path: Path
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    entry = tmp_path / "agent_loop.yaml"
    entry.write_text(agent_loop_entry(VerlSettings(max_tokens=512), tmp_path / "rewards"))
    settings = VerlSettings(workers=1)
    found = composed(stage_overrides(STAGE, settings, replace(files, agent_loop=entry)))
    tasks = tasks_of("base", "miss_param")
    worker = AgentLoopWorker(found, ScriptedClient(tokenizer, playground_scripts(tasks)))
    batch = batch_of(files.train, tokenizer, found).repeat(2)
    asyncio.run(worker.generate_sequences(batch))
    groups = reward_groups([tmp_path / "rewards"], -1, 3)  # this older worker of verl tells no step
    assert groups == [(task_id, [1.0, 1.0]) for task_id in sorted(task.task_id for task in tasks)]


def test_several_branches_reach_the_trainer_as_rows_of_one_rollout(
    files: StageFiles, tokenizer: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of verl's present trainer, in this process; only its queue is replaced by a list."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.trainer.ppo.v1 import agent_loop_tq

    kept: list[dict[str, Any]] = []

    async def keep(**given: Any) -> None:
        kept.append(given)

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", keep)
    task = tasks_of("miss_func")[0]
    row = dataset_rows([task], "playground", "train", EpisodeTerms("s", 3))[0]
    kind = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = kind.__new__(kind)
    AgentLoopWorker.__init__(worker, config, ScriptedClient(tokenizer, playground_scripts([task])))
    trajectory = {"step": 3, "sample_index": 0, "rollout_n": 0, "validate": False}
    about = {"uid": "u", "session_id": 1, "global_steps": 3, "raw_prompt": row["prompt"]}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    asyncio.run(worker._run_agent_loop(sampling, trajectory, trace=False, **row, **about))
    assert [given["keys"] for given in kept] == [["u_1_0", "u_1_1"]]
    fields = kept[0]["fields"]
    rewards = [float(scores.sum()) for scores in fields["rm_scores"].unbind()]
    assert rewards == [1.0, 1.0]
    masks = [int(mask.sum()) for mask in fields["response_mask"].unbind()]
    said = [tokenizer.encode(text, add_special_tokens=False) for text in solution_replies(task)]
    assert sum(masks) == sum(len(ids) + 1 for ids in said)
    assert [len(ids) for ids in fields["responses"].unbind()] == [
        len(one) for one in fields["rollout_log_probs"].unbind()
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    # a cluster of its own, also where another one runs on this machine
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_manager_spreads_episodes_over_two_processes(
    cluster: None, files: StageFiles, tokenizer: Any, config: Any
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager

    client = ScriptedClient(tokenizer, playground_scripts(tasks_of("base", "miss_param")))
    manager = AgentLoopManager.create(config, client)
    assert len(manager.agent_loop_workers) == 2
    batch = batch_of(files.train, tokenizer, config).repeat(2)
    output = manager.generate_sequences(batch)
    check_batch(output, tokenizer, len(batch))
    assert output.meta_info["timing"]["agent_loop/num_preempted/max"] == 0

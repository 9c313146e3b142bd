"""Run one episode: environment and model in, `Rollout` out, whatever happens in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from langchain_core.exceptions import ContextOverflowError as ProviderContextOverflowError
from langchain_core.language_models import BaseChatModel
from langgraph.types import RetryPolicy

from envtune_agents.errors import ContextOverflowError
from envtune_agents.graph import build_agent_graph
from envtune_agents.hints import HintDial, HintEngine, as_engine
from envtune_agents.progress import episode_reward
from envtune_agents.rollout.manifest import model_name as model_name
from envtune_agents.rollout.record import template_hash_of, timings_of, turns_of, usage_of
from envtune_agents.rollout.retry import patient
from envtune_agents.tape import tape_facts
from envtune_agents.types import Environment, ProgressScorer, Rollout, StopReason, Task, TurnScore

EPISODE_TIMEOUT_S = 1800.0
_NO_LIMIT = 1_000_000


class EpisodeOptions(TypedDict, total=False):
    """The settings that `run_episode` and `collect` share; all but the last two are those of `build_agent_graph`."""

    hints: HintEngine | HintDial | int
    scorer: ProgressScorer
    system_prompt: str | None
    max_steps: int
    call_timeout_s: float | None
    scorer_timeout_s: float | None
    first_step_calls: bool
    malformed_ends_turn: bool
    model_retry: RetryPolicy | None
    stage: str
    """Curriculum stage, for the record only."""
    episode_timeout_s: float | None
    """Wall seconds for the whole episode; 1,800 unless given."""


async def run_episode(
    model: BaseChatModel,
    environment: Environment,
    *,
    seed: int = 0,
    sample: int = 0,
    **options: Unpack[EpisodeOptions],
) -> Rollout:
    """Plays the environment's task with `model` and gives the record.

    Nothing that the model, a tool, the environment or the scorer does raises out of here: it ends the episode and is
    recorded as its `stop_reason` and `error`. `seed` and `sample` name the rollout and, for models with a seed, set it.
    A model call that fails for a transient reason is made again, see `patient`. The tape is checked: `Rollout.tape`.
    """
    return await recorded(_graph_states, model, environment, seed, sample, options)


async def recorded(
    states_of: Callable[..., AsyncIterator[dict[str, Any]]],
    model: BaseChatModel,
    environment: Environment,
    seed: int,
    sample: int,
    options: EpisodeOptions,
) -> Rollout:
    """The record of the episode whose states `states_of(model, environment, seed=…, hints=…, …)` gives one by one."""
    given: dict[str, Any] = dict(options)
    stage = given.pop("stage", "")
    timeout_s = given.pop("episode_timeout_s", EPISODE_TIMEOUT_S)
    given.setdefault("model_retry", patient())
    given["hints"] = engine = as_engine(given.get("hints", 3)).for_episode(environment.task, stage)
    given["seed"] = (seed * 7_919 + sample * 104_729) % 2**31
    states = states_of(model, environment, **given)
    started = time.perf_counter()
    state, stop_reason, error = await _play(states, timeout_s)
    messages = state.get("messages", [])
    turns = turns_of(messages, state.get("scores", []), state.get("evidence", []))
    scores = [TurnScore(**score) for score in state.get("scores", [])]
    task = environment.task
    rollout = Rollout(
        rollout_id=rollout_id(task.task_id, seed, sample),
        task_id=task.task_id,
        category=task.category,
        seed=seed,
        sample=sample,
        model=model_name(model),
        stage=stage,
        hint_level=engine.dial.level,
        turns=turns,
        n_turns=len(task.turns),
        reward=None if error else episode_reward(scores, len(task.turns)),
        stop_reason=stop_reason,
        error=error,
        usage=usage_of(messages),
        timings=timings_of(turns, time.perf_counter() - started),
        template_hash=template_hash_of(messages),
    )
    return replace(rollout, tape=tape_facts(rollout, decode=_decoder(model) if rollout.template_hash else None))


def failed_rollout(
    task: Task, error: Exception, model: str, *, seed: int = 0, sample: int = 0, **options: Unpack[EpisodeOptions]
) -> Rollout:
    """The record of an episode that could not begin, such as of a task whose environment cannot be made."""
    return Rollout(
        rollout_id=rollout_id(task.task_id, seed, sample),
        task_id=task.task_id,
        category=task.category,
        seed=seed,
        sample=sample,
        model=model,
        stage=options.get("stage", ""),
        hint_level=as_engine(options.get("hints", 3)).dial.level,
        turns=(),
        n_turns=len(task.turns),
        reward=None,
        stop_reason=StopReason.ERROR,
        error=one_line(error),
    )


def _graph_states(model: BaseChatModel, environment: Environment, **options: Any) -> AsyncIterator[dict[str, Any]]:
    graph = build_agent_graph(model, environment, **options)
    return graph.astream({}, {"recursion_limit": _NO_LIMIT}, stream_mode="values")


async def _play(
    states: AsyncIterator[dict[str, Any]], timeout_s: float | None
) -> tuple[dict[str, Any], StopReason, str | None]:
    state: dict[str, Any] = {}
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            async for values in states:
                state = values
    except (ContextOverflowError, ProviderContextOverflowError):
        return state, StopReason.CONTEXT, None
    except Exception as error:
        if deadline.expired():
            return state, StopReason.TIMEOUT, None
        return state, StopReason.ERROR, one_line(error)
    return state, StopReason(state["stop_reason"]), None


def _decoder(model: Any) -> Callable[[Sequence[int]], str] | None:
    """The model's own detokenizer, special tokens kept, where it runs in this process."""
    weights = getattr(getattr(model, "engine", None), "weights", None)
    return getattr(weights, "decode", None)


def one_line(error: BaseException) -> str:
    """An exception as a record keeps it: its type and message, on one line, without a traceback."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]


def rollout_id(task_id: str, seed: int, sample: int) -> str:
    """The name of one rollout: the same task, seed and sample give the same name, which resuming relies on."""
    return f"{task_id}/{seed}/{sample}"

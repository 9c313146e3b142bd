"""`EnvTuneAgentLoop`: verl asks for a trajectory, the library's own episode is played, its token tape goes back.

    - name: envtune
      _target_: envtune_verl.agent_loop.EnvTuneAgentLoop
      max_tokens: 4096

Training, evaluation and deployment are one code path: `run_episode` over a chat model whose replies verl's servers
decode. Nothing is rendered twice and nothing sampled is tokenised again.
"""

from __future__ import annotations

import uuid
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envtune_agents import run_episode
from envtune_agents.errors import ScorerError, require
from envtune_agents.types import Rollout
from envtune_verl.dataset import EpisodePlan
from envtune_verl.outputs import (
    TrainingRow,
    chat_turns,
    reward_extra_info,
    reward_of,
    training_rows,
    untrainable_row,
)
from envtune_verl.policy import ServedPolicy, ServerEngine, served_weights
from envtune_verl.rewards import note_reward
from envtune_verl.settings import VERL_INSTALL

if TYPE_CHECKING:

    class AgentLoopBase:
        """The parts of verl's class that are used here; verl has no types."""

        config: Any
        rollout_config: Any
        server_manager: Any
        tokenizer: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

else:
    AgentLoopBase = require(
        "verl.experimental.agent_loop.agent_loop", feature="EnvTuneAgentLoop", install=VERL_INSTALL
    ).AgentLoopBase


class EnvTuneAgentLoop(AgentLoopBase):
    """Plays the task of one dataset row (`write_dataset`) with verl's servers and gives its trajectory.

    Several token-continuous branches become several outputs with the same reward. An episode that ran out of the
    length limits is a result like any other. One that has an error, or no token to train on, raises `ScorerError` in
    training (verl marks its group as failed) and counts as 0 in validation.
    """

    def __init__(
        self,
        *args: Any,
        max_tokens: int = 4096,
        max_steps_per_turn: int = 20,
        seed: int = 0,
        rewards: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`max_tokens` are those of one reply; `rewards` is the folder in which adaptive help finds what training
        rollouts earned, if it is asked for. The rest is verl's."""
        super().__init__(*args, **kwargs)
        self._max_tokens = max_tokens
        self._max_steps = max_steps_per_turn
        self._seed = seed
        self._rewards = Path(rewards) if rewards else None

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:
        """One trajectory, as verl's `AgentLoopOutput` or a list of them. `row` holds the dataset's columns."""
        plan = EpisodePlan.from_json(dict(row.get("extra_info") or {}).get("episode"))
        server = self._server(sampling_params)
        rollout = await self._played(plan, server, row)
        score = reward_of(rollout, plan.terms.reward, validation=plan.terms.validation)
        if self._rewards and not plan.terms.validation and rollout.reward is not None:
            note_reward(self._rewards, int(row.get("global_steps", 0) or 0), plan.task_id, rollout.reward)
        rows = self._rows(rollout, plan)
        outputs = [self._output(row_, rollout, score, plan, server) for row_ in rows]
        return outputs if len(outputs) > 1 else outputs[0]

    def _server(self, sampling_params: dict[str, Any]) -> ServerEngine:
        limits = self.rollout_config
        name = str(self.config.actor_rollout_ref.model.path)
        weights = served_weights(self.tokenizer, name, limits.prompt_length + limits.response_length)
        return ServerEngine(
            self.server_manager,
            weights,
            uuid.uuid4().hex,
            max_prompt=limits.prompt_length,
            max_response=limits.response_length,
            sampling={key: value for key, value in sampling_params.items() if key != "logprobs"},
        )

    async def _played(self, plan: EpisodePlan, server: ServerEngine, row: dict[str, Any]) -> Rollout:
        source, task = plan.task()
        model = ServedPolicy.over(
            server, temperature=server.sampling.get("temperature", 1.0), max_tokens=self._max_tokens
        )
        return await run_episode(
            model,
            source.environment(task),
            seed=self._seed + max(int(row.get("global_steps", 0) or 0), 0),
            sample=int(row.get("session_id", 0) or 0),
            hints=source.hint_engine(plan.terms.hint_level),
            scorer=source.scorer,
            malformed_ends_turn=source.malformed_ends_turn,
            max_steps=self._max_steps,
            stage=plan.terms.stage,
        )

    def _rows(self, rollout: Rollout, plan: EpisodePlan) -> list[TrainingRow]:
        limits = self.rollout_config
        rows = training_rows(rollout, limits.prompt_length, limits.response_length)
        if plan.terms.validation:  # only the score counts there
            return rows[-1:] or [untrainable_row(rollout, self.tokenizer.pad_token_id or 0, limits.prompt_length)]
        if not rows:
            why = rollout.tape.note if rollout.tape else rollout.stop_reason.value
            raise ScorerError(
                f"The rollout {rollout.rollout_id} holds no token to train on: {why or rollout.stop_reason.value}. "
                f"Raise data.max_prompt_length (now {limits.prompt_length}), or leave the task out."
            )
        return rows

    def _output(self, row: TrainingRow, rollout: Rollout, score: float, plan: EpisodePlan, server: ServerEngine) -> Any:
        agent_loop: Any = import_module("verl.experimental.agent_loop.agent_loop")
        scores = [turn.score.value for turn in rollout.turns if turn.score is not None]
        return agent_loop.AgentLoopOutput(
            prompt_ids=row.prompt_ids,
            response_ids=row.response_ids,
            response_mask=row.response_mask,
            response_logprobs=row.response_logprobs,
            reward_score=score,
            num_turns=chat_turns(rollout),
            metrics=agent_loop.AgentLoopMetrics(
                generate_sequences=rollout.timings.model_s,
                tool_calls=rollout.timings.tools_s,
                num_preempted=server.preempted,
            ),
            extra_fields={
                "reward_extra_info": reward_extra_info(rollout, plan.terms.reward),
                "turn_scores": scores,
                "tool_rewards": [],
                "rollout_id": rollout.rollout_id,
                "stop_reason": rollout.stop_reason.value,
                "min_global_steps": min(server.versions, default=None),
                "max_global_steps": max(server.versions, default=None),
            },
        )

"""A server without GPUs, to play a task source through verl's own workers before there is anything to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from envtune_agents.qwen import format_call
from envtune_agents.types import Task

_REPLY_OPENS = "<|im_start|>assistant\n"


class ScriptedClient:
    """In the place of verl's `LLMServerClient`: the n-th reply of a conversation is the n-th text of its script.

        AgentLoopWorker(config, ScriptedClient(tokenizer, playground_scripts(tasks)))

    Conversations are told apart by their first user message, in ChatML. It pickles, so Ray workers can have it.
    """

    def __init__(self, tokenizer: Any, scripts: Mapping[str, Sequence[str]], *, weights_step: int = 0) -> None:
        self.tokenizer = tokenizer
        self.scripts = dict(scripts)
        """First user message -> replies; after the last it says nothing."""
        self.weights_step = weights_step
        """Training step that the weights are said to be of."""
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        """Request id, prompt ids and sampling parameters of every call."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        """The script's next reply, as verl's `TokenOutput`."""
        replica: Any = import_module("verl.workers.rollout.replica")
        self.asked.append((request_id, list(prompt_ids), dict(sampling_params)))
        ids = self.reply(prompt_ids)[: sampling_params["max_tokens"]]
        return replica.TokenOutput(
            token_ids=ids,
            log_probs=[scripted_logprob(token) for token in ids],
            stop_reason="completed",
            extra_fields={"global_steps": self.weights_step},
        )

    def reply(self, prompt_ids: Sequence[int]) -> list[int]:
        """The tokens of the reply to a prompt, the end token included."""
        text = self.tokenizer.decode(list(prompt_ids))
        script = next((said for user, said in self.scripts.items() if f"user\n{user}<|im_end|>" in text), ())
        position = text.count(_REPLY_OPENS) - 1
        said = script[position] if position < len(script) else ""
        return [*self.tokenizer.encode(said, add_special_tokens=False), self.tokenizer.eos_token_id]


def scripted_logprob(token_id: int) -> float:
    """The log-probability a script gives to a token: told apart by token, so that a shifted tape shows."""
    return -0.01 - (token_id % 89) / 89


def playground_scripts(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Scripts that play playground tasks by their own solutions: all calls of a turn in one reply, then "Done."."""
    return {task.turns[0]: solution_replies(task) for task in tasks}


def solution_replies(task: Task) -> list[str]:
    """The replies that solve one playground task."""
    said: list[str] = []
    for calls in task.data["solution"]:
        said += ["\n".join(format_call(name, args) for name, args in calls)] if calls else []
        said.append("Done.")
    return said

"""Inside a worker process: an episode is the library's own.

`run_directly` with `ChatTransformers`, hints, scores and token tape. Only the engine is another: it sends prompt ids
through a pipe and waits for sampled ids.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

Row = tuple[list[int], list[int], list[int], list[float]]
"""One token-continuous branch: prompt ids, completion ids, loss mask, logprobs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play."""

    key: int
    """Unique in its phase."""
    task: Any
    hint_level: int
    temperature: float
    max_new: int
    max_steps: int
    script: str = ""
    """"" asks the model; "expert" and "clumsy" are played by a script instead (see `scripts`)."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """What is kept of an episode."""

    key: int
    task_id: str
    category: str
    progress: float | None
    """Mean turn score; None after an error."""
    format: float
    """The format reward, in [0, 2]."""
    solved: bool
    stop: str
    error: str | None
    calls: int
    failures: int
    malformed: int
    hints: int
    hint_tokens: int
    """Characters of hint text divided by 4."""
    fixed: int
    """Hints after which the next such call worked."""
    rows: list[Row]
    drifted: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What a worker must know of the model."""

    folder: str
    """Tokenizer files."""
    end_ids: tuple[int, ...]
    context: int


def work(pipe: Connection) -> None:
    """Plays what comes through the pipe until "quit" comes, or the other end is gone."""
    asyncio.run(_serve(pipe))


_script_text: contextvars.ContextVar[str | None] = contextvars.ContextVar("script_text", default=None)
_episode: contextvars.ContextVar[int] = contextvars.ContextVar("episode", default=-1)


class _RemoteEngine:
    """Stands where the chat model's engine stands; its model is in the process at the other end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.weights: Any = None
        self._pipe = pipe
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._outbox: list[Any] = []
        self._count = 0

    async def aweights(self) -> Any:
        return self.weights

    async def agenerate(self, request: Any) -> Any:
        from envtune_agents.engine import GenerationResult
        from envtune_agents.errors import ContextOverflowError

        prompt = list(request.prompt_ids)
        room = self.weights.context_length - len(prompt) - 1
        if room < 1:
            raise ContextOverflowError(f"{len(prompt)} tokens do not fit.")
        text = _script_text.get()
        if text is not None:
            ids = [*self.weights.encode(text), self.weights.end_token_ids[-1]]
            logprobs, ended = [0.0] * len(ids), True
        else:
            ids, logprobs, ended = await self._remote(prompt, min(request.max_new_tokens, room), request.temperature)
        said = self.weights.decode(ids[:-1] if ended else ids)
        return GenerationResult(
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            text=said,
            full_text=said,
            tail=said,
            finish_reason="end" if ended else "length",
            prompt_tokens=len(prompt),
            cached_tokens=0,
        )

    async def _remote(self, prompt: list[int], max_new: int, temperature: float) -> Any:
        loop = asyncio.get_running_loop()
        self._count += 1
        future = self._open[self._count] = loop.create_future()
        if not self._outbox:
            loop.call_soon(self._flush)
        self._outbox.append((self._count, _episode.get(), prompt, max_new, temperature))
        return await future

    def _flush(self) -> None:
        self._pipe.send(("ask", self._outbox))
        self._outbox = []

    def take(self, replies: Sequence[Any]) -> None:
        for number, ids, logprobs, ended in replies:
            self._open.pop(number).set_result((ids, logprobs, ended))


def _weights_of(subject: Subject) -> Any:
    from transformers import AutoTokenizer

    from envtune_agents.weights.load import Weights

    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    return Weights(None, tokenizer, "subject", "bf16", subject.context, subject.end_ids, tokenizer.chat_template)


async def _serve(pipe: Connection) -> None:
    from envtune_agents.chat_model import ChatTransformers

    engine = _RemoteEngine(pipe)

    class Policy(ChatTransformers):
        """The chat model with the remote engine, or with a script that says what it samples."""

        script: Any = None

        @property
        def engine(self) -> Any:
            return engine

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            """As the chat model does it, but each tool is turned into its schema once in a worker's life."""
            return self.bind(tools=[_offered(tool) for tool in tools], **kwargs)

        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            _script_text.set(self.script(messages) if self.script else None)
            return await super()._agenerate(messages, stop, run_manager, **kwargs)

    loop, ended, tasks = asyncio.get_running_loop(), asyncio.Event(), set()

    def receive() -> None:
        while not ended.is_set() and pipe.poll():
            try:
                kind, body = pipe.recv()
            except EOFError:  # the main process is gone
                kind, body = "quit", None
            if kind == "tokens":
                engine.take(body)
            elif kind == "subject":
                engine.weights = _weights_of(body)
            elif kind == "quit":
                ended.set()
            else:
                task = loop.create_task(_episode_of(body, Policy, pipe))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    loop.add_reader(pipe.fileno(), receive)
    await ended.wait()
    loop.remove_reader(pipe.fileno())


_schemas: dict[tuple[str, str], Any] = {}


def _offered(tool: Any) -> Any:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    key = (tool.name, tool.description)
    if key not in _schemas:
        _schemas[key] = convert_to_openai_tool(tool)
    return _schemas[key]


async def _episode_of(job: Job, policy: Any, pipe: Connection) -> None:
    from scripts import script_of

    from envtune_agents.hints import HintDial, HintEngine
    from envtune_agents.playground import PLAYGROUND_RULES, Playground
    from envtune_agents.rollout import run_directly

    try:
        _episode.set(job.key)
        script = script_of(job) if job.script else None
        model = policy(model="subject", temperature=job.temperature, max_tokens=job.max_new, script=script)
        rollout = await run_directly(
            model,
            Playground(job.task),
            seed=job.seed,
            hints=HintEngine(PLAYGROUND_RULES, HintDial(job.hint_level)),
            max_steps=job.max_steps,
            episode_timeout_s=None,
            call_timeout_s=None,
            scorer_timeout_s=None,
        )
        pipe.send(("done", played_of(job, rollout)))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        raise


def played_of(job: Job, rollout: Any) -> Played:
    """What the experiment keeps of a rollout."""
    from envtune_agents.progress import format_reward
    from envtune_agents.summary import next_call_worked, outcomes_of
    from envtune_agents.tape import tape_of
    from envtune_agents.types import FailureKind

    outcomes = list(outcomes_of(rollout))
    tape = tape_of(rollout)
    steps = [step for turn in rollout.turns for step in turn.steps]
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    return Played(
        key=job.key,
        task_id=rollout.task_id,
        category=rollout.category,
        progress=rollout.reward,
        format=format_reward(rollout),
        solved=rollout.solved,
        stop=rollout.stop_reason.value,
        error=rollout.error,
        calls=len(outcomes),
        failures=len(failures),
        malformed=sum(failure.kind is FailureKind.MALFORMED_CALL for failure in failures),
        hints=sum(outcome.hint is not None for outcome in outcomes),
        hint_tokens=sum(len(outcome.hint.text) // 4 for outcome in outcomes if outcome.hint),
        fixed=sum(
            next_call_worked(outcome, steps[index + 1 :]) is True
            for index, step in enumerate(steps)
            for outcome in step.outcomes
            if outcome.hint
        ),
        rows=[(list(b.prompt_ids), list(b.completion_ids), list(b.loss_mask), list(b.logprobs)) for b in tape.branches],
        drifted=tape.drifted,
    )

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool, tool
from light import Light, always_on, light_tasks

from envtune_agents import Playground, evaluate, playground_tasks
from envtune_agents.errors import ContextOverflowError, RecordError, TaskError
from envtune_agents.evaluate import aevaluate, read_report
from envtune_agents.progress import strict_score
from envtune_agents.rollout import patient
from envtune_agents.task_source import TaskSource, Verdict
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model
from envtune_agents.types import Environment, Rollout, Task, TurnEvidence, TurnScore


class Said(ScriptedChatModel):
    """Calls a function of the first message's text, which may raise."""

    answer: Any

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        return self.answer(str(messages[0].text), messages)  # type: ignore[no-any-return]


def said(answer: Any) -> Said:
    return Said(script=list[AIMessage | str](), answer=answer)


# --- the table ---


def test_every_episode_is_counted_by_category_and_overall() -> None:
    report = evaluate(always_on(), light_tasks(6), Light)
    assert {name: (score.correct, score.total) for name, score in report.categories.items()} == {
        "on": (3, 3),
        "off": (0, 3),
    }
    assert (report.score.correct, report.score.total, report.category_mean) == (3, 6, 0.5)
    assert [entry.task_id for entry in report.entries] == [f"light_{i}" for i in range(6)]
    entry = report.entries[1]
    assert (entry.error_type, entry.ended, entry.turns_solved, entry.n_turns, entry.steps, entry.calls) == (
        "state_mismatch",
        "done",
        0,
        1,
        2,
        1,
    )
    assert "OVERALL" in str(report)
    assert "50.00%" in str(report)


def test_categories_of_different_size_have_their_own_mean() -> None:
    report = evaluate(always_on(), light_tasks(3), Light)
    assert report.score == pytest.approx(2 / 3)
    assert report.category_mean == 0.5


def test_the_solution_solves_every_task() -> None:
    tasks = [playground_tasks(seed=2, n=4)[index] for index in range(4)]
    assert evaluate(solution_model(tasks), tasks, Playground).score == 1.0


def test_no_hints_are_given() -> None:
    with pytest.raises(TaskError, match="without hints"):
        evaluate(always_on(), light_tasks(), Light, hints=3)


def test_a_source_brings_its_scorer_verdict_and_flags(tmp_path: Path) -> None:
    def judge(task: Task, rollout: Rollout) -> Verdict:
        return Verdict(False, "judged") if task.task_id == "light_0" else Verdict(rollout.solved)

    source = TaskSource(
        lambda split, categories: light_tasks(), Light, judge=judge, flagged=lambda: {"light_0": "broken", "x": "y"}
    )
    report = evaluate(always_on(), source, out=tmp_path)
    assert report.score.correct == 1
    assert report.entries[0].error_type == "judged"
    assert report.flagged == {"light_0": "broken"}
    assert (report.score_without_flagged.correct, report.score_without_flagged.total) == (1, 3)
    assert "1 tasks are flagged for a bad label" in str(report)
    assert read_report(tmp_path).flagged == report.flagged


# --- what goes wrong is an entry ---


def broken_scorer(evidence: TurnEvidence) -> TurnScore:
    if evidence.state_checks["on"]:
        raise KeyError("no such score")
    return strict_score(evidence)


def test_a_scorer_that_raises_is_an_error_and_stays_in_the_total() -> None:
    report = evaluate(always_on(), light_tasks(), Light, scorer=broken_scorer)
    assert (report.score.correct, report.score.total) == (0, 4)
    assert [entry.error_type for entry in report.entries] == ["error: ScorerError", "state_mismatch"] * 2
    assert "2 of 4 episodes ended with an error" in str(report)


def test_a_model_that_never_stops_is_cut_after_the_step_limit() -> None:
    model = said(lambda text, messages: calls_message(("switch", {"on": True}), position=len(messages)))
    report = evaluate(model, light_tasks(2), Light)
    assert [(entry.ended, entry.solved, entry.steps) for entry in report.entries] == [("step_limit", False, 21)] * 2


def overflow(text: str, messages: list[BaseMessage]) -> AIMessage:
    raise ContextOverflowError("70,000 tokens, 32,768 fit")


def test_a_prompt_over_the_context_is_counted_as_that() -> None:
    report = evaluate(said(overflow), light_tasks(2), Light)
    assert [(entry.ended, entry.error_type) for entry in report.entries] == [("context", "context")] * 2
    assert report.score.total == 2


def test_an_environment_that_cannot_be_made_is_an_error() -> None:
    def make(task: Task) -> Environment:
        if task.task_id == "light_1":
            raise OSError("disk full")
        return Light(task)

    report = evaluate(always_on(), light_tasks(), make)
    assert report.entries[1].error == "OSError: disk full"
    assert (report.score.correct, report.score.total) == (2, 4)


class Outage:
    """An endpoint that is down for some calls."""

    def __init__(self, down: set[int], error: Exception) -> None:
        self.calls, self.down, self.error = 0, down, error

    def __call__(self, text: str, messages: list[BaseMessage]) -> AIMessage:
        self.calls += 1
        if self.calls in self.down:
            raise self.error
        return calls_message(("switch", {"on": True})) if len(messages) == 1 else AIMessage("Done.")


def test_a_passing_outage_is_waited_for() -> None:
    endpoint = Outage({2, 3}, ConnectionError("refused"))
    report = evaluate(said(endpoint), light_tasks(2), Light, model_retry=patient(4, 0.01), concurrency=1)
    assert report.entries[0].solved
    assert endpoint.calls == 6


def test_an_endpoint_that_fails_halfway_leaves_errors_that_can_be_retried(tmp_path: Path) -> None:
    endpoint = Outage(set(range(3, 100)), ConnectionError("refused"))
    options: dict[str, Any] = {"model_retry": patient(2, 0.01), "concurrency": 1, "out": tmp_path}
    report = evaluate(said(endpoint), light_tasks(), Light, **options)
    assert [entry.error for entry in report.entries] == [None, *["ConnectionError: refused"] * 3]
    assert (report.score.correct, report.score.total) == (1, 4)

    endpoint.down = set()
    again = evaluate(said(endpoint), light_tasks(), Light, **options)
    assert again.score.correct == 1, "errors are results until one asks for them again"
    assert again.manifest.played == 0
    retried = evaluate(said(endpoint), light_tasks(), Light, retry_errors=True, **options)
    assert (retried.score.correct, retried.manifest.played) == (2, 3)
    assert len((tmp_path / "errors.jsonl").read_text().splitlines()) == 3


def test_a_wrong_request_is_not_repeated() -> None:
    endpoint = Outage(set(range(100)), ValueError("unknown model"))
    evaluate(said(endpoint), light_tasks(1), Light, model_retry=patient(5, 0.01))
    assert endpoint.calls == 1


def test_an_interrupted_run_reports_what_was_played_and_goes_on(tmp_path: Path) -> None:
    async def interrupted() -> None:
        def stop(text: str, messages: list[BaseMessage]) -> AIMessage:
            if text == "task 2":
                task.cancel()
            return calls_message(("switch", {"on": True})) if len(messages) == 1 else AIMessage("Done.")

        task = asyncio.ensure_future(aevaluate(said(stop), light_tasks(), Light, out=tmp_path, concurrency=1))
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    partial = read_report(tmp_path)
    assert [entry.ended for entry in partial.entries] == ["done", "done", "not_played", "not_played"]
    assert (partial.score.correct, partial.score.total, partial.complete) == (1, 4, False)
    assert "INTERRUPTED: 2 of 4" in str(partial)

    def on(text: str, messages: list[BaseMessage]) -> AIMessage:
        return calls_message(("switch", {"on": True})) if len(messages) == 1 else AIMessage("Done.")

    whole = evaluate(said(on), light_tasks(), Light, out=tmp_path)
    assert (whole.score.correct, whole.complete, whole.manifest.played) == (2, True, 2)


def test_another_model_or_other_data_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    evaluate(always_on(), light_tasks(), Light, out=tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    other = always_on().model_copy(update={"model_name": "another"})
    with pytest.raises(RecordError, match="model name was 'scripted', is 'another'"):
        evaluate(other, light_tasks(), Light, out=tmp_path)
    changed = [Task("light_0", "on", ("task 0",), {"on": False})]
    with pytest.raises(RecordError, match="the data of 1 tasks, such as 'light_0'"):
        evaluate(always_on(), changed, Light, out=tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


def test_a_folder_of_hinted_rollouts_is_refused(tmp_path: Path) -> None:
    from envtune_agents import collect

    asyncio.run(collect(light_tasks(), always_on(), Light, out=tmp_path))
    with pytest.raises(RecordError, match="other settings"):
        evaluate(always_on(), light_tasks(), Light, out=tmp_path)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((always_on(), [], Light), "no tasks"),
        ((always_on(), light_tasks()), "need their environment"),
        ((always_on(), light_tasks(1) * 2, Light), "ids must be unique"),
        ((3, light_tasks(), Light), "Expected a LangChain chat model"),
    ],
)
def test_wrong_arguments_say_what_is_expected(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        evaluate(*arguments)


async def test_inside_an_event_loop_one_awaits() -> None:
    with pytest.raises(TaskError, match="await aevaluate"):
        evaluate(always_on(), light_tasks(), Light)
    assert (await aevaluate(always_on(), light_tasks(), Light)).score == 0.5


def test_the_module_can_be_called_like_the_function() -> None:
    import envtune_agents

    assert envtune_agents.evaluate(always_on(), light_tasks(2), Light).score == 0.5


# --- several samples ---


def coin() -> Iterator[bool]:
    while True:
        yield from (True, False, False, True)


def test_several_samples_give_pass_at_k_and_pass_hat_k() -> None:
    flips = coin()
    model = said(
        lambda text, messages: (
            calls_message(("switch", {"on": next(flips)})) if len(messages) == 1 else AIMessage("Done.")
        )
    )
    tasks = [task for task in light_tasks(4) if task.category == "on"]
    report = evaluate(model, tasks, Light, samples=4, concurrency=1)
    assert report.solved_counts() == {"light_0": 2, "light_2": 2}
    assert (report.score, report.score.total) == (0.5, 8)
    assert report.pass_at(1) == report.pass_hat(1) == 0.5
    assert report.pass_at(2) == pytest.approx(5 / 6)
    assert report.pass_hat(2) == pytest.approx(1 / 6)
    assert (report.pass_at(4), report.pass_hat(4)) == (1.0, 0.0)
    assert "pass^k: all of k           50.00%  16.67%    0.00%" in str(report)
    with pytest.raises(TaskError, match="1 to 4"):
        report.pass_at(5)


# --- applications ---


def light_app(environment: Any) -> Any:
    return create_agent(always_on(), environment.tools(), name="light_app")


def test_an_application_is_a_function_from_the_environment_to_a_graph() -> None:
    report = evaluate(light_app, light_tasks(), Light)
    assert (report.score.correct, report.manifest.model.name) == (2, "light_app")
    assert [(entry.calls, entry.steps) for entry in report.entries] == [(1, 2)] * 4


def test_a_compiled_graph_finds_the_environment_in_its_config() -> None:
    @tool
    def switch(on: bool, config: RunnableConfig) -> str:
        """Switch the light."""
        return str(config["configurable"]["environment"].switch(on))

    report = evaluate(create_agent(always_on(), [switch]), light_tasks(), Light)
    assert report.score.correct == 2


def test_an_application_that_raises_or_never_stops_is_an_entry() -> None:
    def raises(environment: Any) -> Any:
        model = said(lambda text, messages: calls_message(("switch", {"on": 7, "off": 1}), position=len(messages)))
        return create_agent(model, environment.tools())

    def wrong(environment: Any) -> Any:
        return "no graph"

    assert {entry.ended for entry in evaluate(raises, light_tasks(), Light, max_steps=3).entries} == {"step_limit"}
    entry = evaluate(wrong, light_tasks(1), Light).entries[0]
    assert entry.error == "TaskError: wrong returned str; expected a compiled graph."


class Riddle:
    """An environment that needs the agent's words."""

    def __init__(self, task: Task) -> None:
        self.task, self.turn, self.heard = task, -1, ""

    def open_turn(self) -> str | None:
        self.turn += 1
        return self.task.turns[self.turn] if self.turn < len(self.task.turns) else None

    def tools(self) -> list[StructuredTool]:
        return []

    def read_reply(self, text: str) -> None:
        self.heard = text

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(self.turn, response_checks={"answer": self.task.data["answer"] in self.heard})


RIDDLES = [Task(f"riddle_{n}", "sums", (f"What is {n} + {n}?",), {"answer": str(2 * n)}) for n in (2, 3)]


def test_an_environment_may_read_the_reply() -> None:
    model = ScriptedChatModel(script=["It is 4."])
    assert [entry.solved for entry in evaluate(model, RIDDLES, Riddle).entries] == [True, False]
    app = evaluate(lambda environment: create_agent(model, []), RIDDLES, Riddle)
    assert [entry.error_type for entry in app.entries] == [None, "response_mismatch"]

"""Nobody's request waits for all of somebody else's: counted in steps of a scheduler, with no thread and no clock."""

from __future__ import annotations

from collections import Counter

import pytest
from engine_asking import FEW_TOKENS, Asked, endless, scheduler_of, steps_until

from envtune_agents.engine import GenerationRequest
from envtune_agents.engine.job import Job
from envtune_agents.engine.scheduler import MAX_ROWS
from envtune_agents.engine.turns import Waiting, deal
from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import Weights, load_weights

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return endless(load_weights(tiny_qwen(tmp_path_factory.mktemp("tiny")), "fp32"))


def test_a_thousand_requests_of_one_caller_do_not_hold_up_anothers(weights: Weights) -> None:
    scheduler = scheduler_of(weights)
    many = [Asked(scheduler, 20, 500, "a") for _ in range(1000)]
    for _ in range(3):
        scheduler.step()
    assert len(scheduler._rows) == MAX_ROWS
    assert steps_until(scheduler, Asked(scheduler, 20, 3, "b"), 5)
    assert not any(each.done for each in many)


def test_callers_run_equally_many_requests(weights: Weights) -> None:
    scheduler = scheduler_of(weights)
    for caller in ("a", "b"):
        for _ in range(200):
            Asked(scheduler, 20, 50, caller)
    scheduler.step()
    assert Counter(row.caller for row in scheduler._rows) == {"a": MAX_ROWS // 2, "b": MAX_ROWS // 2}


def test_conversations_of_a_caller_start_in_turn(weights: Weights) -> None:
    scheduler = scheduler_of(weights)
    many = [Asked(scheduler, 5, 2, "a", conversation="x") for _ in range(300)]
    scheduler.step()
    other = Asked(scheduler, 5, 2, "a", conversation="y")
    while not other.done:
        scheduler.step()
    assert sum(each.done for each in many) <= MAX_ROWS + 16


def test_long_prompts_of_one_caller_leave_half_of_a_pass_to_another(weights: Weights) -> None:
    scheduler = scheduler_of(weights)
    for _ in range(12):
        Asked(scheduler, 1900, caller="a")
    scheduler.step()
    assert steps_until(scheduler, Asked(scheduler, 64, caller="b"), 1) == 1


def test_a_short_prompt_gets_its_share_beside_long_ones_of_the_same_caller(weights: Weights) -> None:
    """12 requests, 4 of which read 32 tokens in each pass."""
    scheduler = scheduler_of(weights)
    for _ in range(11):
        Asked(scheduler, 1900)
    scheduler.step()
    assert steps_until(scheduler, Asked(scheduler, 64), 7)


@pytest.mark.parametrize(("caller", "length", "most"), [("a", 900, 15), ("b", 100, 4 * 17)])
def test_a_stream_of_short_prompts_does_not_hold_up_a_long_one(
    weights: Weights, caller: str, length: int, most: int
) -> None:
    """Five prompts of 40 tokens come for every pass of 128. Another caller gets half of each pass; a request of the
    same caller gets 32 tokens of every 17th pass at least, since 64 run at once and 4 are served in a pass."""
    scheduler = scheduler_of(weights)
    long = Asked(scheduler, length, caller=caller)
    for _ in range(most):
        for _ in range(5):
            Asked(scheduler, 40, caller="b")
        scheduler.step()
        if long.done:
            return
    pytest.fail(f"no reply after {most} steps")


def test_small_requests_do_not_take_the_memory_that_a_large_one_waits_for(weights: Weights) -> None:
    """Room for 400 tokens, which small requests fill again and again; the large one needs 350."""
    scheduler = scheduler_of(weights, FEW_TOKENS)
    small = [Asked(scheduler, 20, 5, "a") for _ in range(100)]
    scheduler.step()
    running = len(scheduler._rows)
    assert steps_until(scheduler, Asked(scheduler, 345, 5, "b"), 60)
    assert running == 16
    assert sum(each.done for each in small) < 2 * running


def test_what_waits_leaves_by_caller_and_conversation_in_turn() -> None:
    waiting = Waiting()
    for name in ("a1", "a1", "a2", "b1", "a1", "b1"):
        waiting.add(Job(GenerationRequest((len(name),), caller=name[0], conversation=name[1]), print, False))
    order = [f"{job.request.caller}{job.request.conversation}" for job in waiting.leave()]
    assert order == ["a1", "b1", "a2", "b1", "a1", "a1"]
    assert not waiting


def test_the_caller_with_the_fewest_running_is_next() -> None:
    waiting = Waiting()
    for name in ("a", "b", "c"):
        waiting.add(Job(GenerationRequest((1,), caller=name), print, False))
    running = {"a": 2, "b": 1, "c": 1}
    assert waiting.next(running).request.caller == "b"
    assert [waiting.take(running).request.caller for _ in range(3)] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("total", "wanted", "shares"),
    [
        (200, [("a", "", 500), ("a", "", 500), ("b", "", 500)], [50, 50, 100]),
        (200, [("a", "", 500), ("a", "", 500), ("b", "", 20)], [90, 90, 20]),
        (200, [("a", "x", 500), ("a", "x", 500), ("a", "y", 500)], [50, 50, 100]),
        (120, [("a", "", 10), ("b", "", 0), ("c", "", 40)], [10, 0, 40]),
        (64, [("a", "", 50)] * 5, [32, 32, 0, 0, 0]),
        (20, [("a", "", 50), ("b", "", 50)], [20, 0]),
        (64, [("a", "", 0), ("b", "", 0), ("c", "", 50), ("d", "", 50)], [0, 0, 32, 32]),
        (100, [], []),
    ],
)
def test_tokens_are_dealt_out_in_equal_shares(
    total: int, wanted: list[tuple[str, str, int]], shares: list[int]
) -> None:
    assert deal(total, wanted, 32) == shares

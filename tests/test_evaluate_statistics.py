from __future__ import annotations

import copy
import pickle
from itertools import combinations
from math import comb, sqrt
from random import Random
from statistics import NormalDist, fmean, pstdev

import pytest

from envtune_agents.evaluate.score import Score
from envtune_agents.evaluate.statistics import (
    effective_trials,
    exact_bounds,
    paired_bootstrap,
    paired_bounds,
    pass_at_k,
    pass_hat_k,
    sign_test,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_exact_bounds_are_clopper_and_pearsons(successes: int, n: int, low: float, high: float) -> None:
    """The same table, method 5: two one-sided 97.5% bounds are the two-sided 95% interval."""
    assert exact_bounds(successes, n, 0.975) == pytest.approx((low, high), abs=5e-5)


def test_exact_bounds_keep_their_promise_for_few_tasks() -> None:
    """The chance of a lower bound above the true share, summed over everything that 12 tasks can come to."""
    for share in (0.3, 0.7, 0.9):
        chances = [comb(12, k) * share**k * (1 - share) ** (12 - k) for k in range(13)]
        assert sum(chance for k, chance in enumerate(chances) if exact_bounds(k, 12).low > share) <= 0.05
        assert sum(chance for k, chance in enumerate(chances) if exact_bounds(k, 12).high < share) <= 0.05


def test_extremes_have_bounds() -> None:
    assert exact_bounds(0, 0) == (0.0, 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    assert exact_bounds(3, 3).low == pytest.approx(0.05 ** (1 / 3))
    assert exact_bounds(2000, 2000).high == 1.0
    assert exact_bounds(1000, 2000).low == pytest.approx(0.4814, abs=1e-3)


@pytest.mark.parametrize("solved", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_chances_equal_what_drawing_k_of_the_samples_gives(solved: int, k: int) -> None:
    samples = [True] * solved + [False] * (5 - solved)
    draws = list(combinations(samples, k))
    assert pass_at_k(5, solved, k) == pytest.approx(fmean(any(draw) for draw in draws))
    assert pass_hat_k(5, solved, k) == pytest.approx(fmean(all(draw) for draw in draws))


def test_samples_of_a_task_that_agree_are_worth_one() -> None:
    assert effective_trials([1.0, 0.0] * 20, 4) == pytest.approx(40, rel=0.05)
    random = Random(1)
    independent = [sum(random.random() < 0.5 for _ in range(4)) / 4 for _ in range(400)]
    assert effective_trials(independent, 4) > 1200
    assert effective_trials([1.0] * 7, 4) == 7
    assert effective_trials([], 3) == 0


def test_the_bootstrap_agrees_with_the_normal_approximation_for_many_tasks() -> None:
    differences = [1.0] * 60 + [-1.0] * 40 + [0.0] * 300
    interval = paired_bootstrap(differences, resamples=2000)
    half = NormalDist().inv_cdf(0.975) * pstdev(differences) / sqrt(400)
    assert interval == pytest.approx((0.05 - half, 0.05 + half), abs=0.006)
    assert paired_bootstrap(differences, resamples=2000) == interval
    assert paired_bootstrap([]) == (0.0, 0.0)


def test_five_ties_are_no_certainty() -> None:
    assert paired_bootstrap([0.0] * 5) == (0.0, 0.0)
    assert paired_bounds([0.0] * 5).low < -0.25
    assert paired_bounds([0.0] * 400).low > -0.01
    assert paired_bounds([-1.0] * 20).high < -0.6


def test_sign_test() -> None:
    assert sign_test(5, 0) == pytest.approx(0.0625)
    assert sign_test(2, 10) == pytest.approx(0.03857, abs=1e-5)
    assert sign_test(0, 0) == sign_test(7, 7) == 1.0


def test_a_score_is_a_number_that_carries_its_interval() -> None:
    score = Score([1] * 18 + [0] * 7)
    assert score == 0.72
    assert (score.correct, score.total) == (18, 25)
    assert repr(score) == "0.720 (18 of 25, 95% interval 0.524-0.857)"
    assert score >= 0.8 - 0.1
    for twin in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert repr(twin) == repr(score)


def test_a_score_of_several_samples_is_less_sure_than_its_episodes() -> None:
    score = Score([4, 0] * 20, samples=4)
    assert (score.correct, score.total) == (80, 160)
    assert (score.low, score.high) == pytest.approx(wilson(20, 40), abs=0.01)
    assert score.one_sided().low == pytest.approx(wilson(20, 40, 0.9).low, abs=0.01)

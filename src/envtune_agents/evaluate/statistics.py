"""The formulas behind a report: intervals, bounds, pass@k, pass^k and the paired comparison of two runs.

Numbers in, numbers out. Everything here is exact arithmetic or a textbook formula; its source stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb, exp, lgamma, log, log1p, sqrt
from random import Random
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

CONFIDENCE = 0.95
RESAMPLES = 10_000


class Interval(NamedTuple):
    """Two ends, low and high."""

    low: float
    high: float


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval for a share, in [0, 1] (Wilson 1927; Brown, Cai and DasGupta 2001).

    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z·sqrt(p(1−p)/n) it keeps its promise for few
    tasks and at 0% and 100%. `n` may be an effective number of trials.
    """
    if n <= 0:
        return Interval(0.0, 1.0)
    z, p = _z(confidence), successes / n
    middle = p + z * z / (2 * n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return Interval(max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole))


def exact_bounds(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The two one-sided Clopper-Pearson bounds of a share, each holding with `confidence` (Clopper and Pearson 1934).

    `low` is the largest share at which `successes` or more would be rarer than 1 − confidence, `high` the same from
    above. Exact for every n, so somewhat wide for few tasks.
    """
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else _share_at(alpha, lambda p: _at_least(successes, n, p))
    high = 1.0 if successes == n else 1 - _share_at(alpha, lambda p: _at_least(n - successes, n, p))
    return Interval(low, high)


def effective_trials(shares: Sequence[float], samples: int) -> float:
    """How many independent episodes `samples` episodes of each task are worth (Korn and Graubard 1998).

    `shares` holds the share solved of each task. Episodes of one task resemble each other, so their number is divided
    by the design effect: p(1−p) over the variance of the task means, at least the number of tasks (all episodes of a
    task alike) and at most the number of episodes.
    """
    n, p = len(shares), fmean(shares) if shares else 0.0
    spread = variance(shares) if n > 1 else 0.0
    if samples == 1 or spread == 0 or p in (0.0, 1.0):
        return float(n)
    return min(max(n * p * (1 - p) / spread, float(n)), float(n * samples))


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """The chance that at least one of k episodes solves a task, from `solved` of `samples` episodes; unbiased.

    1 − C(n−c, k)/C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1).
    """
    return 1 - comb(samples - solved, k) / comb(samples, k)


def pass_hat_k(samples: int, solved: int, k: int) -> float:
    """The chance that all of k episodes solve a task, unbiased: C(c, k)/C(n, k) (pass^k, Yao et al. 2024, τ-bench)."""
    return comb(solved, k) / comb(samples, k)


def paired_bootstrap(
    differences: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the mean of paired differences, tasks drawn with replacement (Efron and Tibshirani 1993).

    The same differences give the same interval. Below about twenty tasks it is too narrow; see `paired_bounds`.
    """
    if not differences:
        return Interval(0.0, 0.0)
    random, n = Random(seed), len(differences)
    means = sorted(sum(random.choices(differences, k=n)) / n for _ in range(resamples))
    cut = (1 - confidence) / 2
    return Interval(means[int(cut * resamples)], means[min(resamples - 1, int((1 - cut) * resamples))])


def paired_bounds(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The two one-sided bounds of a mean paired difference, each holding with `confidence` (Bonett and Price 2012).

    The adjusted Wald bound: two invented tasks join, one better by 1 and one worse by 1, so that a handful of equal
    results does not pass for certainty.
    """
    n = len(differences) + 2
    mean = sum(differences) / n
    spread = (sum(d * d for d in differences) + 2) / n - mean * mean
    half = NormalDist().inv_cdf(confidence) * sqrt(spread / n)
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value that wins and losses are equally likely; ties do not count (McNemar's exact test)."""
    n = wins + losses
    ways = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * ways / int(2**n))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _at_least(successes: int, n: int, p: float) -> float:
    """The chance of `successes` or more of n at a share of p in (0, 1)."""
    terms = (_log_comb(n, k) + k * log(p) + (n - k) * log1p(-p) for k in range(successes, n + 1))
    return float(sum(map(exp, terms)))


def _log_comb(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _share_at(alpha: float, chance: Callable[[float], float]) -> float:
    """The share at which a rising chance reaches alpha, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) > alpha else (middle, high)
    return low

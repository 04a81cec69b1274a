"""Timing side by side: calls run in turn, round by round, and a ratio of their times with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Clock = Callable[[], float]

ROUNDS = 40
MIN_ROUNDS = 7  # rounds of calls that take long
MAX_SECONDS = 20.0  # seconds after which no more than the fewest rounds are run
STRETCH = 4e-3  # seconds that the calls of one round take at least: a clock and its call cost a microsecond
MAX_CALLS = 500  # in one round
WARM_UP = 3
MARGIN = 0.05  # what is nearer to 1 than this is called the same: two copies of one network differ by up to so much
OFTEN = 0.75  # of the rounds: what disturbs a machine lasts for several, which an interval of the median does not know
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times faster than what it is held against: the median over all rounds, and the 95 % interval of that median.

    Args:
        median: above 1 is faster.
        low: lower end.
        high: upper end.
        won: fraction of the rounds in which it was faster.
    """

    median: float
    low: float
    high: float
    won: float

    @classmethod
    def of(cls, base: Sequence[float], times: Sequence[float]) -> Ratio:
        """Return base / times, round by round: their median with a percentile bootstrap (2,000 draws, always the same)."""
        ratios = np.asarray(base, dtype=float) / np.maximum(np.asarray(times, dtype=float), 1e-12)
        drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
        return cls(float(np.median(ratios)), float(low), float(high), float((ratios > 1).mean()))

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies more than 5 % above 1, and three rounds of four were won."""
        return self.low > 1 + MARGIN and self.won >= OFTEN

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies more than 5 % below 1, and three rounds of four were lost."""
        return self.high < 1 / (1 + MARGIN) and self.won <= 1 - OFTEN


def clock_of(threads: int) -> tuple[Clock, str]:
    """Return the clock for calls on so many threads, and its name.

    On one thread it is processor time, which is the wall's less the waiting for other jobs; on several it is the wall's.
    """
    return (time.process_time, "processor time") if threads == 1 else (time.perf_counter, "wall time")


def in_turn(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = ROUNDS, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Run calls in turn, without gradients, and return the seconds that one call took in each round, by name.

    In every round each is called as often as fills 4 ms, in an order drawn anew (always the same draws), so that none
    always finds the machine as the same other has left it. Rounds that take long are fewer, at least 7.

    Args:
        calls: what is timed, by name.
        rounds: how many rounds, at least 1.
        clock: returns seconds; by default `clock_of` torch's number of threads.
    """
    clock = clock if clock is not None else clock_of(torch.get_num_threads())[0]
    names = list(calls)
    with torch.inference_mode():
        often = {name: _often(calls[name], clock) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        begun, order = clock(), np.random.default_rng(0)
        for number in range(rounds):
            if number >= MIN_ROUNDS and clock() - begun > MAX_SECONDS:
                break
            for place in order.permutation(len(names)):
                name = names[place]
                call = calls[name]
                started = clock()
                for _ in range(often[name]):
                    call()
                times[name].append((clock() - started) / often[name])
    return times


def _often(call: Callable[[], Any], clock: Clock) -> int:
    for _ in range(WARM_UP):
        started = clock()
        call()
        took = clock() - started
    return min(max(math.ceil(STRETCH / max(took, 1e-6)), 1), MAX_CALLS)

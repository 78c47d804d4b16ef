"""Interleaved timing, and the report every benchmark ends with."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: its row in the table.
        work: one unit of work; called `per_turn` times in a row, the mean of which is one measurement.
        per_turn: units in a turn; enough that a turn takes a few milliseconds.
        drain: untimed units at the start of a turn: what worker processes had ready from the time others were
            measured.
        settle_s: pause after a turn, until the worker processes have filled their queues and rest.
    """

    name: str
    work: Callable[[], object]
    per_turn: int = 1
    drain: int = 0
    settle_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a benchmark found; bigger is better in every ratio and share.

    Attributes:
        name, unit: of the benchmark, and of `ours`, `limit` and the rows.
        ours, limit: our figure and the physical limit's.
        headline_peer: the peer that `ratio` is against, a key of `ratios`.
        ratios: ours to each peer.
        share_of_limit: ours to the limit.
        rows: every figure by name.
    """

    name: str
    unit: str
    ours: float
    limit: float
    headline_peer: str
    ratios: Mapping[str, float]
    share_of_limit: float
    rows: Mapping[str, float] = field(default_factory=dict)


def interleave(contenders: Sequence[Contender], *, rounds: int) -> dict[str, float]:
    """Median seconds of one unit of each contender, over `rounds` rounds of a turn each, after one that does
    not count.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds + 1):
        for contender in contenders:
            for _ in range(contender.drain):
                contender.work()
            start = time.perf_counter()
            for _ in range(contender.per_turn):
                contender.work()
            taken = (time.perf_counter() - start) / contender.per_turn
            if turn:
                seconds[contender.name].append(taken)
            time.sleep(contender.settle_s)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(result: Result) -> str:
    """A table, and last the line of JSON."""
    width = max(len(name) for name in result.rows)
    lines = [
        f"{result.name}: {result.unit}",
        *(f"  {name:{width}s} {figure:12,.4g}" for name, figure in result.rows.items()),
    ]
    lines += [f"  ours / {name}: {ratio:.3g}" for name, ratio in result.ratios.items()]
    lines += [f"  share of the limit: {result.share_of_limit:.3f}"]
    line = {
        "name": result.name,
        "unit": result.unit,
        "ours": result.ours,
        "limit": result.limit,
        "headline_peer": result.headline_peer,
        "ratio": result.ratios[result.headline_peer],
        "ratios": dict(result.ratios),
        "share_of_limit": result.share_of_limit,
        "rows": dict(result.rows),
    }
    return "\n".join([*lines, json.dumps(line)])

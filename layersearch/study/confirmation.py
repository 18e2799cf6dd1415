"""The two rounds of a confirmation: all candidates on a few fresh seeds, then more seeds where they decide.

Most candidates are far from the best, which two seeds show. The claims are about few: all-full, the schedule with the
lowest loss, and the best baseline within the budget. The second round gives further seeds to these alone. It is held
whatever the first round shows: a test that stops when it likes what it sees does not keep its level.
"""

from layersearch.results.result import ALL_FULL, Result
from layersearch.schedule import Schedule

CANDIDATES = 2
"""Candidates within the budget in the second round: the one with the lowest loss, and the best baseline or, if the two
are one, the second best."""
DECIDING = CANDIDATES + 1
"""The largest number of schedules in the second round."""


def second_round(result: Result) -> tuple[Schedule, ...]:
    """Return the schedules that get further seeds, from the result of the first round; empty without a candidate."""
    if result.winner is None:
        return ()
    seeds = len(result.winner.seeds)
    ranked = [
        (entry.mean.mean, entry.flops, entry)
        for entry in result.entries
        if entry.within_budget and entry.mean is not None and entry.mean.n >= seeds
    ]
    candidates = [entry for *_, entry in sorted(ranked, key=lambda row: row[:2])]
    baselines = [entry for entry in candidates if entry.names]
    chosen = dict.fromkeys(entry.schedule for entry in (candidates[0], *baselines[:1], *candidates))
    full = [entry.schedule for entry in result.entries if ALL_FULL in entry.names]
    return tuple(dict.fromkeys((*full, *list(chosen)[:CANDIDATES])))

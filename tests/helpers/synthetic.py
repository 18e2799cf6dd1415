"""Records as a run would write them, of a made-up loss whose truth is known to the test."""

from __future__ import annotations

import numpy as np

from layersearch.schedule import Schedule
from layersearch.training.record import Phase, State, TrialRecord

FULL_FLOPS = 1_000_000
WINDOW_COST = 0.12


def record(
    schedule: Schedule | str,
    loss: float | None,
    *,
    seed: int = 0,
    phase: Phase = "search",
    role: str = "proposed",
    state: State = "complete",
    cost: float | None = None,
    steps: int = 400,
    curve: tuple[tuple[int, float], ...] = (),
    metrics: tuple[tuple[str, float], ...] = (),
) -> TrialRecord:
    """Return one record; without a cost, a full layer counts 1 and any other `WINDOW_COST`."""
    spans = schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule)
    share = sum(1.0 if span.is_full else WINDOW_COST for span in spans) / len(spans) if cost is None else cost
    return TrialRecord(
        schedule=spans,
        seed=seed,
        phase=phase,
        role=role,
        state=state,
        flops=round(FULL_FLOPS * share),
        cost=round(FULL_FLOPS * share) / FULL_FLOPS,
        steps=steps,
        full_steps=400,
        loss=loss,
        curve=curve or (((steps, loss),) if loss is not None else ()),
        metrics=metrics,
        error="it failed" if state == "failed" else None,
    )


def confirmed(
    schedule: Schedule | str, losses: list[float], *, role: str = "proposed", cost: float | None = None
) -> list[TrialRecord]:
    """Return one record per fresh seed, the seeds counted from 1."""
    return [
        record(schedule, loss, seed=seed, phase="confirm", role=role, cost=cost)
        for seed, loss in enumerate(losses, start=1)
    ]


def a_run(
    n_schedules: int = 30,
    *,
    layers: int = 8,
    noise: float = 0.004,
    gap: float = 0.3,
    base: float = 2.4,
    budget: float = 0.5,
    seeds: int = 3,
    finalists: int = 4,
    seed: int = 0,
) -> list[TrialRecord]:
    """Return a whole run: all-full, all-sparse and placements at the budget, proposals, halving, fresh seeds.

    The true loss falls by ``gap`` with the first full layer, less with each further one, and favors late layers.
    """
    rng = np.random.default_rng(seed)
    most = max(1, int((budget - WINDOW_COST) / (1 - WINDOW_COST) * layers))

    def placed(full: set[int]) -> Schedule:
        return Schedule.parse(" ".join("full" if layer in full else "window:32" for layer in range(layers)))

    sets: dict[Schedule, tuple[str, set[int]]] = {}
    step = layers / most
    for role, full in (
        ("all_full", set(range(layers))),
        ("all_sparse", set()),
        (f"bottom({most})", set(range(most))),
        (f"top({most})", set(range(layers - most, layers))),
        (f"interleaved({most})", {int(step * (index + 0.5)) for index in range(most)}),
    ):
        sets.setdefault(placed(full), (role, full))
    for _ in range(1000):
        if len(sets) >= n_schedules:
            break
        full = {int(layer) for layer in rng.choice(layers, size=rng.integers(1, most + 1), replace=False)}
        sets.setdefault(placed(full), ("proposed", full))

    def truth(full: set[int]) -> float:
        place = max((layer / (layers - 1) for layer in full), default=0.0)
        return base - gap * (1 - 0.35 ** len(full)) - 0.2 * gap * place + 0.05 * gap * (len(full) == layers)

    losses = {schedule: truth(full) + float(rng.normal(0, noise)) for schedule, (_, full) in sets.items()}
    records = []
    for number, (schedule, (role, _)) in enumerate(sets.items()):
        early = tuple((at, losses[schedule] + 400 / at * gap * 0.5 + float(rng.normal(0, noise))) for at in (100, 200))
        ended = role == "proposed" and number % 2 == 1
        curve = early[:1] if ended else (*early, (400, losses[schedule]))
        state: State = "stopped" if ended else "complete"
        records.append(record(schedule, curve[-1][1], role=role, state=state, steps=100 if ended else 400, curve=curve))
    done = [r for r in records if r.state == "complete" and r.role == "proposed"]
    chosen = sorted(done, key=lambda r: r.loss or 0.0)[:finalists] + [r for r in records if r.role != "proposed"]
    for fresh in range(1, seeds + 1):
        common = float(rng.normal(0, 2 * noise))
        for r in chosen:
            loss = truth(sets[r.schedule][1]) + common + float(rng.normal(0, noise))
            records.append(record(r.schedule, loss, seed=fresh, phase="confirm", role=r.role))
    return records

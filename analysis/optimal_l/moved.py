"""How l* and what a full layer gains move with each factor, as a section of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from groups import moves
from mdtable import table
from study import asked_of, move_records, setting_of

from layersearch.optimal_l.answer import SettingAnswer, answer_setting
from layersearch.optimal_l.report import difference, law
from layersearch.optimal_l.scaling_law import fit_laws
from layersearch.results.stats import mean_interval, paired_difference
from layersearch.training.record import TrialRecord


def gain_on_top(records: Sequence[TrialRecord], l: int) -> dict[int, float]:
    """Return by how much the l-th full layer on top lowers the loss (nats), by seed.

    Nothing is chosen here, so that the seeds of the selection count as well.
    """
    losses: dict[int, dict[int, float]] = {l - 1: {}, l: {}}
    for record in records:
        held = losses.get(record.schedule.n_full)
        on_top = list(record.schedule) == sorted(record.schedule, key=lambda span: span.is_full)
        if held is not None and on_top and record.loss is not None:
            held[record.seed] = record.loss
    return {seed: losses[l - 1][seed] - losses[l][seed] for seed in losses[l - 1].keys() & losses[l].keys()}


def gains_change(gains: Sequence[Mapping[int, float]], values: Sequence[int], unit: str) -> str:
    """Say whether the first full layer gains as much at the last value of a factor as at the first."""
    first, last = gains[0], gains[-1]
    if len(first.keys() & last.keys()) < 2:
        return ""
    gap = paired_difference(last, first)
    told = "gains less" if gap.mean < 0 else "gains more"
    if not gap.excludes_zero:
        told = "is not shown to gain more or less"
    return f" The first full layer on top {told} at {values[-1]} than at {values[0]} {unit} ({difference(gap)} nats)."


def moves_section() -> tuple[list[str], dict[str, list[tuple[int, SettingAnswer]]]]:
    """Return how l* moves with each factor, and the answers to draw."""
    held = move_records()
    lines: list[str] = []
    drawn: dict[str, list[tuple[int, SettingAnswer]]] = {}
    for move in moves().values():
        answers, gains, fresh = [], [], []
        for value in move.values:
            records = held.get(setting_of(move, value))
            if records:
                gains.append([gain_on_top(records, l) for l in (1, 2)])
                fresh.append({(r.schedule, r.seed): r.loss for r in records if r.phase == "confirm" and r.loss})
                (setting,) = asked_of(move, value).settings()
                answers.append((value, answer_setting(setting, records, None, 0)))
        if len(answers) < 2:
            continue  # one value shows no move
        drawn[move.name] = answers
        cells = [
            [
                str(value),
                str(found.l_star.value),
                f"{found.l_star.low} to {found.l_star.value}",
                f"{found.l_star_all_full.low} to {found.l_star_all_full.value}",
                f"`{found.l_star.reference}`",
                str(mean_interval(loss for (held, _), loss in losses.items() if held == found.l_star.reference)),
                str(found.most_seeds_spent),
                *(difference(mean_interval(gain.values())) for gain in gained),
            ]
            for (value, found), gained, losses in zip(answers, gains, fresh, strict=True)
        ]
        name = move.name.replace("-", ", on ")
        laws = fit_laws(
            [value for value, _ in answers],
            [found.l_star.value for _, found in answers],
            [(found.l_star.low, found.l_star.value) for _, found in answers],
        )
        lines += [f"### l* against {name} ({move.unit})", ""]
        told = " ".join(law(move.name.split("-")[0], laws, len(answers)))
        told += gains_change([one for one, _ in gains], [value for value, _ in answers], move.unit)
        lines += [f"**{told}**", ""]
        head = [move.unit, "l*", "not excluded", "against all-full", "best found", "its loss", "seeds"]
        head += ["first full layer on top gains", "second gains"]
        lines += [*table(head, cells), ""]
    return (["## How l* moves", "", *lines] if lines else []), drawn

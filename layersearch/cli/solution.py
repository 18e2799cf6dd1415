"""The page that ``layersearch solve`` prints."""

from layersearch.cli.tables import console, size, table
from layersearch.results.stats import decimals
from layersearch.surrogate.solve import ENOUGH_SCHEDULES, Candidate, Solution

_QUANTITY = {"cost": "attention cost", "kv_cache": "KV cache", "latency": "latency"}
_SOURCE = {
    "trained": "predicted for the mean over seeds; trained, but not confirmed",
    "stopped": "predicted for the mean over seeds; its trial was stopped early",
    "untrained": "predicted for the mean over seeds; never trained",
}


def print_solution(found: Solution, *, flops: int, confirm_with: str | None) -> None:
    """Print the answer with its attention FLOPs (forward, one sequence), its alternatives, and the command, if any,
    that tests the proposal."""
    screen = console()
    answer = found.answer
    quantity, level = _QUANTITY[found.kind], f"{found.confidence:.0%}"

    def amount(value: float) -> str:
        if found.kind == "cost":
            return f"{value:.4g} of all-full"
        return f"{size(value)} ({int(value):,} bytes)" if found.kind == "kv_cache" else f"{value:.6g} ms"

    screen.print(f"Constraint: {quantity} at most {amount(found.limit)}")
    screen.print(f"Answer: {answer.schedule} (l = {answer.n_full})", style="bold")
    source = _SOURCE.get(answer.state, f"measured, the mean over {answer.seeds} fresh seeds")
    places = decimals(answer.high - answer.loss)
    screen.print(f"Loss {answer.loss:.{places}f} nats, {level} interval {_interval(answer, places)}: {source}.")
    more = "" if found.kind == "cost" else f"; {quantity} {amount(answer.takes)}"
    spent = f"{flops:,} FLOPs a sequence (one multiply-add = one FLOP)"
    screen.print(f"Attention cost {answer.cost:.6f} of all-full, {spent}{more}.")
    screen.print(_alternatives(found))
    grid = table("", "schedule", "l", "cost", "loss", f"{level} interval", "seeds", "model", left=2)
    grid.columns[0].no_wrap = True
    rows = {
        "confirmed": found.measured,
        "cheapest as good": found.cheaper,
        "predicted": found.proposal,
        f"nearest (layers changed: {found.changed})": found.nearest,
    }
    for name, one in rows.items():
        if one is not None:
            places = decimals(one.high - one.loss)
            seeds = str(one.seeds) if one.seeds else "search" if one.state == "trained" else one.state
            cells = [name, str(one.schedule), str(one.n_full), f"{one.cost:.3f}", f"{one.loss:.{places}f}"]
            grid.add_row(*cells, _interval(one, places), seeds, f"{one.predicted:.{places}f}")
    screen.print("", grid, "", sep="\n")
    screen.print(_basis(found))
    if confirm_with is not None:
        screen.print(f"Confirm with: {confirm_with}", soft_wrap=True)


def _interval(one: Candidate, places: int) -> str:
    return f"{one.low:.{places}f} to {one.high:.{places}f}"


def _alternatives(found: Solution) -> str:
    """Compare the best confirmed schedule within the constraint with the best prediction."""
    if found.proposal is None:
        return "All schedules that could be proposed within the constraint are confirmed; nothing is predicted."
    low = ""
    if found.proposal.predicted < found.lowest:
        low = (
            f" The prediction is below the lowest trained loss ({found.lowest:.4g} nats). The model does not know "
            "where losses level off, so the interval reaches up to that loss."
        )
    if found.measured is None or found.difference is None:
        return "No schedule within the constraint is confirmed on fresh seeds yet." + low
    gap = found.difference
    places = decimals(gap.high - gap.mean)
    by = f"{gap.mean:+.{places}f} nats, {found.confidence:.0%} interval {gap.low:+.{places}f} to {gap.high:+.{places}f}"
    if gap.mean >= 0:
        return f"No other schedule is predicted below the best confirmed one; the best of the others differs by {by}."
    if gap.shown:
        return f"The model predicts it below the best confirmed schedule by {by}.{low}"
    return f"{found.proposal.schedule} is predicted below the best confirmed schedule, which is not shown: {by}.{low}"


def _basis(found: Solution) -> str:
    """Say which trials a solution rests on, and that a better prediction may have been missed."""
    noise = "" if found.noise is None else f"Seed std {found.noise:.2g} nats. "
    stopped = f" and {found.stopped} stopped" if found.stopped else ""
    every = found.trials + found.stopped
    learned = "Learned from" if found.fitted == every else f"Learned from {found.fitted:,} of"
    basis = (
        f"{noise}{learned} {found.trials} complete{stopped} trials of {found.schedules} schedules; {found.within} of "
        f"these are within the constraint. Only trained numbers of full layers are proposed: "
        f"l = {', '.join(map(str, found.n_full))}. "
    )
    if found.schedules < ENOUGH_SCHEDULES:
        basis += f"Fewer than {ENOUGH_SCHEDULES} schedules are trained: predicted intervals are widened for that. "
    if not found.shortlisted:
        return basis + "No untrained schedule with such an l is within the constraint."
    return (
        f"{basis}A local search under single-layer and pair effects offered {found.shortlisted} untrained schedules; "
        "the predictor chose among them. A better one may have been missed."
    )

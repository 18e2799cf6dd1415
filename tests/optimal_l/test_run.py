"""A study of l: what it trains, what it concludes of losses whose truth is known, and that it can be taken up again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from layersearch.cli.main import main
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.errors import UserError
from layersearch.optimal_l.answer import OptimalL
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.placements import count, first_round, named_placements, placement, proposals, role_of
from layersearch.optimal_l.plan import plan
from layersearch.optimal_l.run import optimal_l
from layersearch.schedule import Schedule
from layersearch.schedule.space import load_space
from layersearch.training.checkpoint import load_weights, save_weights
from layersearch.training.record import Trial, TrialRecord, blank_record, read
from layersearch.training.trial import KeepGoing

Truth = Callable[[frozenset[int]], float]
NOISE = 0.003


class Formula:
    """A pool whose trials take no time: a made-up mean loss, what a seed does to all schedules, and noise."""

    def __init__(self, recipe: Recipe, truth: Truth, fail_after: int | None = None, noise: float = NOISE) -> None:
        self.recipe, self.truth, self.left, self.noise = recipe, truth, fail_after, noise

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Return the trial's record at once."""
        found: Future[TrialRecord] = Future()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        schedule = trial.schedule
        digits = [trial.seed, *(int(span.is_full) for span in schedule)]
        own = float(np.random.default_rng(digits).normal(0, self.noise))
        common = float(np.random.default_rng(trial.seed).normal(0, 3 * self.noise))
        loss = self.truth(frozenset(schedule.full_layers)) + own + common
        steps = self.recipe.training.steps
        record = replace(blank_record(trial, self.recipe), state="complete", steps=steps, loss=loss, seconds=1.0)
        found.set_result(replace(record, curve=((steps, loss),)))
        return found

    def close(self) -> None:
        """Nothing to end."""


def recall(full: frozenset[int]) -> float:
    """Four layers: one full layer above a local one is needed and enough; all-full learns too slowly."""
    if not full:
        return 2.5
    if full == {0, 1, 2, 3}:
        return 1.6
    return 2.3 if 0 in full and len(full) == 1 else 0.02


def asked(**more: object) -> OptimalLConfig:
    loaded = load_recipe("recall")
    return OptimalLConfig(recipe=loaded, space=load_space(loaded.default_space), **{"delta": 0.05, **more})  # type: ignore[arg-type]


def study(what: OptimalLConfig, truth: Truth, out: Path, noise: float = NOISE, **more: int) -> OptimalL:
    def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Formula:
        return Formula(recipe, truth, noise=noise, **more)

    return optimal_l(what, out, pool=pool, figures=False)


@pytest.mark.slow
def test_optimal_l_planted_l_star_is_found_and_seeds_are_spent_once(tmp_path: Path) -> None:
    found = study(asked(budget=0.5), recall, tmp_path / "run")
    (answer,) = found.settings
    assert (answer.l_star.low, answer.l_star.value) == (1, 1)
    assert answer.known_l == 1
    assert answer.l_star_all_full.value == 1
    assert answer.knee.l == 1
    assert answer.at_budget is not None
    assert answer.at_budget.l == 1
    assert answer.most_seeds_spent == 3  # nothing was in doubt
    records = list(read(tmp_path / "run" / "trials.jsonl"))
    assert {r.seed for r in records if r.phase == "search"} == {0, 1}
    assert {r.seed for r in records if r.phase == "confirm"} == {2, 3, 4}
    assert max(Counter(r.key for r in records).values()) == 1
    bottom = next(p for p in answer.curve[1].placements if "bottom" in p.name)
    assert bottom.to_best is not None
    assert bottom.to_best.low is not None
    assert bottom.to_best.low > 2.0
    assert "bottom at l = 1" in found.text
    # All placements of the page share one level of 5%, and three clean seeds bound failures at 63%.
    named = [p.to_best for row in answer.curve for p in row.placements if p.to_best is not None]
    assert len(named) > len(answer.curve)
    assert [gap.confidence for gap in named] == pytest.approx([1 - 0.05 / len(named)] * len(named))
    assert "learned at all of their 3 fresh seeds; up to 63% of seeds may still fail (95%)." in found.text
    assert answer.effects.restore == pytest.approx((0.2, 2.48, 2.48, 2.48), abs=0.05)
    assert answer.effects.remove[0] == pytest.approx(-1.58, abs=0.05)
    assert answer.effects.interaction[1][2] == pytest.approx(-2.48, abs=0.05)
    written = json.loads((tmp_path / "run" / "answer.json").read_text())
    assert written["settings"][0]["l_star"]["value"] == 1
    assert (tmp_path / "run" / "answer.md").read_text() == found.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "known"),
    [
        (lambda full: 1.6, 0),
        (lambda full: 0.02 if len(full) in (2, 3) and 0 not in full else 2.2 if full else 3.0, 2),
        (lambda full: 4.0 - len(full), 4),
    ],
    ids=["local", "two hops", "every layer"],
)
def test_optimal_l_other_planted_truths_are_found(truth: Truth, known: int, tmp_path: Path) -> None:
    answer = study(asked(placements=("searched",)), truth, tmp_path / "run").settings[0]
    assert (answer.l_star.low, answer.l_star.value) == (known, known)


@pytest.mark.slow
def test_optimal_l_doubtful_l_gets_more_seeds(tmp_path: Path) -> None:
    """One full layer lies at the margin itself: it gets all the seeds, all-sparse does not."""
    answer = study(
        asked(placements=("searched",)), lambda full: {0: 2.5, 1: 0.05}.get(len(full), 0.0), tmp_path / "run", 0.02
    ).settings[0]
    spent = Counter(r.schedule for r in read(tmp_path / "run" / "trials.jsonl") if r.phase == "confirm")
    assert answer.most_seeds_spent == 12
    assert spent[Schedule.parse("window:2*4")] == 3
    assert spent[answer.curve[1].schedule] == 12
    assert spent[Schedule.parse("full*4")] == 3
    assert answer.l_star.low == 1
    assert answer.l_star.value >= 2
    assert "undecided" in study(asked(placements=("searched",)), lambda full: 0.0, tmp_path / "flat", 0.4).text


@pytest.mark.slow
def test_optimal_l_placement_failing_every_third_seed_does_not_hide_a_steady_one(tmp_path: Path) -> None:
    """Two hops: both selection seeds prefer a placement that fails on fresh ones to one that never does."""

    class Flaky(Formula):
        def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
            found = super().submit(trial, keep_going)
            record = found.result()
            if record.schedule.full_layers == (2, 3):
                assert record.loss is not None
                loss = record.loss - 0.01 if trial.seed < 2 or trial.seed % 3 else record.loss + 2.1
                found = Future()
                found.set_result(replace(record, loss=loss, curve=((record.steps, loss),)))
            return found

    def truth(full: frozenset[int]) -> float:
        return {0: 3.0, 1: 2.3}.get(len(full), 0.02 if full in ({1, 2}, {2, 3}, {1, 2, 3}) else 2.1)

    def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Formula:
        return Flaky(recipe, truth, noise=0.001)

    found = optimal_l(asked(placements=("searched",)), tmp_path / "run", pool=pool, figures=False)
    star, told = found.settings[0].l_star, found.settings[0].failed_seeds
    assert (star.low, star.value) == (2, 2)
    # The reference is the one that fails, and the page says so.
    failed, spent = told[star.reference]
    assert failed == sum(seed % 3 == 0 for seed in range(2, 2 + spent))
    assert f"Failed to learn at some fresh seeds: `{star.reference}` at {failed} of {spent}; up to " in found.text
    assert "l* holds for trainings that learn" in found.text


@pytest.mark.slow
def test_optimal_l_reference_not_borne_out_by_fresh_seeds_is_reported(tmp_path: Path) -> None:
    """The selection seeds flatter all-sparse; what fresh ones say of more full layers stands beside l*."""

    class Flattered(Formula):
        def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
            found = super().submit(trial, keep_going)
            record = found.result()
            if trial.seed < 2 and not record.schedule.full_layers:
                assert record.loss is not None
                found = Future()
                loss = record.loss - 1.0
                found.set_result(replace(record, loss=loss, curve=((record.steps, loss),)))
            return found

    def told(name: str, truth: Truth, noise: float) -> tuple[str, str]:
        def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Formula:
            return Flattered(recipe, truth, noise=noise)

        text = optimal_l(asked(placements=("searched",)), tmp_path / name, pool=pool, figures=False).text
        (line,) = [line for line in text.splitlines() if "of the best schedule found" in line]
        (row,) = [line for line in text.splitlines() if line.startswith("| 2 |")]
        return line, row.split("|")[5]

    worse, gap = told("worse", lambda full: 2.0 - 0.5 * (len(full) == 2), 0.001)
    assert "l* = 0 (95% confidence)" in worse
    assert "is not the best: l = 2 (-0." in worse
    assert "Do not use this l*" in worse
    assert float(gap.split()[0]) == pytest.approx(-0.5, abs=0.01)
    unsure, _ = told("unsure", lambda full: 2.0, 0.2)
    assert "undecided for l = 1 (" in unsure
    sure, _ = told("sure", lambda full: 2.0, 0.001)
    assert "No larger number of full layers is better by 0.05 nats." in sure


@pytest.mark.slow
def test_optimal_l_killed_study_resumes_as_if_unbroken(tmp_path: Path) -> None:
    whole = study(asked(), recall, tmp_path / "whole")
    for stop in (3, 20, 40):
        with pytest.raises(KeyboardInterrupt):
            study(asked(), recall, tmp_path / "cut", fail_after=stop)
    assert study(asked(), recall, tmp_path / "cut").text == whole.text
    lines = [sorted((tmp_path / name / "trials.jsonl").read_text().splitlines()) for name in ("whole", "cut")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_optimal_l_other_delta_is_answered_from_the_same_trials(tmp_path: Path) -> None:
    study(asked(), recall, tmp_path / "run")
    before = (tmp_path / "run" / "trials.jsonl").read_text()
    assert study(asked(delta=3.0), recall, tmp_path / "run").settings[0].l_star.value == 0
    assert (tmp_path / "run" / "trials.jsonl").read_text() == before
    other = replace(asked(), recipe=load_recipe("recall", ["training.steps=50"]))
    with pytest.raises(UserError, match=r"training\.steps \(60, now 50\)"):
        study(other, recall, tmp_path / "run")


@pytest.mark.slow
def test_optimal_l_folder_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    """Keys that recipes and spaces have learnt since stand for their defaults in it."""
    study(asked(), recall, tmp_path / "run")
    before = (tmp_path / "run" / "trials.jsonl").read_text()
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["recipe"]["training"]["start"], config["space"]["layers"], config["space"]["tied"], config["crc32"]
    file.write_text(json.dumps(config))
    study(asked(), recall, tmp_path / "run")
    assert (tmp_path / "run" / "trials.jsonl").read_text() == before
    del config["recipe"]["model"]["tie_embeddings"]  # its default is another than what is asked
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="tie_embeddings"):
        study(asked(), recall, tmp_path / "run")


@pytest.mark.slow
def test_optimal_l_several_lengths_and_depths_get_a_law(tmp_path: Path) -> None:
    """l* = 1 at every length; half the depth at every depth."""
    recipe = load_recipe("smoke", ["data.distance=4", "data.pairs=2", "model.n_layers=2"])
    depths = OptimalLConfig(
        recipe=recipe,
        space=load_space("smoke"),
        delta=0.05,
        placements=("top", "searched"),
        lengths=(24, 48, 96),
        depths=(2, 4, 8),
        per_l=4,
    )

    def pool(given: Recipe, workers: int, logs: Path, cache: Path | None) -> Formula:
        half = given.model.n_layers / 2
        return Formula(given, lambda full: max(0.0, half - len(full)))

    found = optimal_l(depths, tmp_path / "run", pool=pool)
    sizes = [(a.seq_len, a.n_layers, a.l_star.value) for a in found.settings]
    assert sizes == [(24, 2, 1), (48, 2, 1), (96, 2, 1), (48, 4, 2), (48, 8, 4)]
    assert [a.l_star.decided for a in found.settings] == [True] * 5
    assert found.laws["length"][0].b == pytest.approx(0.0, abs=1e-9)
    assert not found.laws["length"][0].sign_is_known
    linear, power = found.laws["depth"]
    assert linear.sign_is_known
    assert (power.a, power.b) == (pytest.approx(0.5), pytest.approx(1.0))
    made = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.png")}
    assert {"l_star.png", "length-48-depth-8/layers.png", "length-24-depth-2/loss_by_l.png"} <= made
    config = json.loads((tmp_path / "run" / "length-96-depth-2" / "config.json").read_text())
    assert (config["recipe"]["training"]["seq_len"], config["recipe"]["training"]["batch_size"]) == (96, 2)
    # Two lengths bear no law: the legend has those of depth all the same.
    fewer = optimal_l(replace(depths, lengths=(24, 48)), tmp_path / "fewer", pool=pool)
    assert not fewer.laws["length"]
    assert "a*x^b" in (tmp_path / "fewer" / "l_star.svg").read_text().split("depth (layers)")[1]


def test_proposals_many_layers_lie_near_good_placements() -> None:
    """Ten layers, three of them full: the surrogate learns from other l's that the upper layers are of use."""
    recipe = load_recipe("laptop", ["model.n_layers=10"])
    (setting,) = OptimalLConfig(recipe=recipe, space=load_space("laptop"), delta=0.01).settings()
    first = first_round(setting)
    kinds = Counter(schedule.n_full for schedule in first)
    assert (kinds[0], kinds[1], kinds[9], kinds[10]) == (1, 10, 10, 1)
    assert set(named_placements(setting, 3).values()) == {s for s in first if s.n_full == 3}

    def truth(schedule: Schedule) -> float:
        return 2.0 - 0.1 * sum(layer / 9 for layer in schedule.full_layers)

    losses = {schedule: truth(schedule) for schedule in first}
    found = proposals(setting, 3, losses, 4)
    assert len(set(found)) == 4
    assert all(schedule.n_full == 3 and schedule not in losses for schedule in found)
    mean = np.mean([truth(placement(setting, full)) for full in ((0, 1, 2), (7, 8, 9), (2, 5, 8))])
    assert np.mean([truth(schedule) for schedule in found]) < mean
    assert count(setting, 3) == 120


def test_role_of_a_placement_is_the_literature_name() -> None:
    (setting,) = asked().settings()
    assert role_of(setting, placement(setting, ())) == "all_sparse"
    assert role_of(setting, placement(setting, range(4))) == "all_full"
    assert role_of(setting, placement(setting, (0,))) == "bottom(1)"
    assert role_of(setting, placement(setting, (0, 3))) == "proposed"


@pytest.mark.slow
def test_load_weights_on_another_machine_are_reported_missing(tmp_path: Path) -> None:
    """The made-up pool keeps none, as a cluster without a common file system would not here."""
    with pytest.raises(
        UserError, match=r"seed-0\.safetensors: the weights were written on another machine; give an --out"
    ):
        study(asked(regime="converted", placements=("searched",)), recall, tmp_path / "run")


@pytest.mark.slow
def test_optimal_l_all_trials_failing_is_reported(tmp_path: Path) -> None:
    def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Formula:
        class Broken(Formula):
            def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
                found: Future[TrialRecord] = Future()
                found.set_result(replace(blank_record(trial, self.recipe), error="no luck"))
                return found

        return Broken(recipe, recall)

    with pytest.raises(UserError, match=r"every trial failed \(no luck\)"):
        optimal_l(asked(), tmp_path / "run", pool=pool)


CASES = [
    (["--delta", "0"], "--delta must be above 0"),
    (["--delta", "nan"], "--delta must be above 0"),
    (["--delta", "inf"], "--delta"),
    (["--delta=-1"], "--delta must be above 0"),
    (["--placements", "bottm"], "did you mean 'bottom'"),
    (["--placements", ","], "--placements is empty"),
    (["--l", "7"], "--l 7 is out of range: a model of 2 layers"),
    (["--l=-1"], "--l -1 is out of range"),
    (["--l", "x"], "'x' is no whole number"),
    (["--lengths", "12.5"], "'12.5' is no whole number"),
    (["--lengths", "1"], "--lengths: 1 is too small"),
    (["--lengths", "10"], "block:12 is longer than the text of 10 tokens"),
    (["--lengths", "48,"], "'' is no whole number"),
    (["--depths", "0"], "--depths: 0 is too small"),
    (["--depths", "2,4", "--l", "3"], "a model of 2 layers"),
    (["--seeds", "1"], "--seeds must be at least 2"),
    (["--max-seeds", "2"], "--max-seeds 2 is less than --seeds 3"),
    (["--trials-per-l", "0"], "--trials-per-l must be at least 1"),
    (["--continued", "0"], "--continued must be a share"),
    (["--continued", "nan"], "--continued must be a share"),
    (["--budget", "2"], "--budget must lie in (0, 1]"),
    (["--seed", "-1"], "--seed: must be in [0, "),
    (["--regime", "convert"], "unknown: 'convert'"),
    (["--workers", "0"], "search.workers: input should be greater than or equal to 1"),
    (["--regime", "converted", "--set", "training.start=w.safetensors"], "drop training.start"),
]


@pytest.mark.parametrize(("flags", "words"), CASES, ids=[" ".join(flags) for flags, _ in CASES])
def test_optimal_l_bad_input_is_refused_in_one_line_and_nothing_is_written(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["optimal-l", "--recipe", "smoke", "--out", "new", "--dry-run", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("layersearch: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_load_weights_changed_file_is_refused_and_whole_ones_kept(tmp_path: Path) -> None:
    kept, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights(kept, tmp_path / "a" / "w.safetensors", 7)
    assert load_weights(other, tmp_path / "a" / "w.safetensors") == 7
    assert torch.equal(kept.weight, other.weight)
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        load_weights(other, tmp_path / "nowhere")
    with pytest.raises(UserError, match="not this model's weights"):
        load_weights(torch.nn.Linear(4, 2), tmp_path / "a" / "w.safetensors")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match="not this model's weights"):
        load_weights(other, tmp_path / "text")
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "plain")
    assert load_weights(other, tmp_path / "plain") == 0


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("name: s\nchoices: [full]\n", "no sparse choice"),
        ("name: s\nchoices: [full, 'window:4']\ntied: [[0, 1]]\n", "ties or restricts"),
        ("name: s\nchoices: [full, 'window:4']\npattern: 1\n", "ties or restricts"),
    ],
)
def test_optimal_l_space_without_a_free_choice_is_refused(
    space: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(space)
    out = str(tmp_path / "new")
    assert main(["optimal-l", "--recipe", "smoke", "--space", str(file), "--out", out]) == 2
    assert words in capsys.readouterr().err
    assert not Path(out).exists()


def test_optimal_l_folder_with_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for more in ([], ["--lengths", "24,48", "--set", "data.distance=4", "--set", "data.pairs=2"]):
        assert main(["optimal-l", "--recipe", "smoke", "--out", str(tmp_path), *more]) == 2
        assert "holds other things" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "truth", [recall, lambda full: {0: 2.5, 1: 0.05}.get(len(full), 0.0)], ids=["plain", "doubtful"]
)
def test_plan_dry_run_holds_what_is_trained(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layersearch.study.estimate._seconds", lambda *given: (None, "not timed"))
    for what in (asked(), asked(placements=("searched",))):
        (planned,) = plan(what, tmp_path / "new")
        assert planned.seconds is None
        assert planned.total_flops == pytest.approx(planned.trial_flops * planned.trials[1])
        answer = study(what, truth, tmp_path / f"run-{len(what.placements)}", noise=0.02).settings[0]
        assert planned.trials[0] <= answer.trials <= planned.trials[1]
    assert not (tmp_path / "new").exists()
    (switched,) = plan(asked(regime="converted"), tmp_path / "new")
    assert switched.before == (5, 14)

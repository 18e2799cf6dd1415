"""Do training-free scores rank schedules as healed models do? And what are sinks worth after healing?

Twelve schedules of two budgets. Each is healed from the original weights by the loss, the learning rate and the
optimizer of `trials/convert/heal.yaml`, on the same sequences, in the same order. Before and after are measured on the
same held-out units. Training sequences share no document with them.

By default a step has one sequence, as much as two cores allow for twelve schedules. A GPU heals for longer:
``--device cuda:0 --steps 150 --rows 8``. Its records are `heal-long`. ``--shard 0/3`` takes each third schedule, with
records `heal-long-0` to be joined.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench import WEIGHT, Bench, Held, append, costs_of, device_name, full_layers, lines, measured, within

STEPS, UNITS, GATE_STEPS = 8, 6, 6
SINK, PLAIN = "window:64+sink:4", "window:68"
"""Two spans of almost equal cost: 68 keys each, but for the first tokens."""


def schedules(bench: Bench) -> dict[str, tuple[float, str]]:
    """Return the schedules by name, each with its budget."""
    from layersearch.schedule import Schedule, presets
    from layersearch.selection.gates import descend

    n = bench.model.n_layers
    held = {r["name"]: r["schedule"] for r in lines("heal-choices")}
    for budget in (0.27, 0.4):
        name = f"chosen at {budget}"
        if name not in held:
            space = bench.space("full", SINK)
            scores = descend(
                bench.scorer("calibration", 0, 4), space.options, costs_of(space), budget, steps=GATE_STEPS, rate=0.5
            )
            held[name] = str(within(space, scores, budget))
            append("heal-choices", {"name": name, "schedule": held[name]})
    found: dict[str, tuple[float, str]] = {}
    for budget, l, wide in ((0.27, 4, 128), (0.4, 9, 0)):  # noqa: E741
        chosen = [at for at, span in enumerate(Schedule.parse(held[f"chosen at {budget}"])) if span.is_full]
        places = {"chosen": chosen, f"interleaved({l})": None, f"top({l})": None}
        for name, layers in places.items():
            for span in (SINK, PLAIN) if not name.startswith("top") else (SINK,):
                if layers is not None:
                    made = presets.place(n, layers, span)
                else:
                    made = (presets.interleaved if name.startswith("inter") else presets.top)(n, l, span)
                found[f"{name}, {'sinks' if span == SINK else 'no sinks'}"] = (budget, str(made))
        if wide:
            for span, said in ((f"window:{wide}+sink:4", "sinks"), (f"window:{wide + 4}", "no sinks")):
                found[f"one window of {wide}, {said}"] = (budget, str(presets.all_sparse(n, span)))
        found = {(k if "@" in k else f"{k} @ {budget}"): v for k, v in found.items()}
    return found


def run(
    model: str, prose: Sequence[str], device: str = "cpu", steps: int = STEPS, rows: int = 1, shard: str = "0/1"
) -> None:
    """Heal what is left, and measure each schedule before and after.

    Args:
        model: the GGUF file.
        prose: not used.
        device: where it runs.
        steps: optimizer steps.
        rows: sequences of a step.
        shard: ``K/N``: every N-th schedule from the K-th on, in records of its own.
    """
    import torch

    from layersearch.convert.config import load_convert_recipe
    from layersearch.model.pretrained import load_pretrained
    from layersearch.schedule import Schedule, presets
    from layersearch.selection.layerwise import Layerwise
    from layersearch.selection.measure import Scorer
    from layersearch.selection.retrieval import TASKS
    from layersearch.training.engine import learning_rate_factor, make_optimizer

    bench = Bench(model, device=device)
    first, every = map(int, shard.split("/"))
    wanted = dict(list(schedules(bench).items())[first::every])
    training = load_convert_recipe("heal", [f"training.steps={steps}"]).training
    name_of = "heal" if (steps, rows) == (STEPS, 1) else "heal-long"
    if every > 1:
        name_of += f"-{first}"
    texts = bench.texts["healing"] if name_of == "heal" else bench.healing()
    weight = load_convert_recipe("heal").distil
    units = bench.units("confirmation", 0, UNITS)
    done = {(r["name"], r["moment"], r["unit"]) for r in lines(name_of)}
    student = copied = None
    full = str(presets.all_full(bench.model.n_layers))

    def measure(name: str, moment: str, text: str, layerwise: Any) -> None:
        for number, unit in enumerate(units):
            if (name, moment, number) not in done:
                found = Scorer(layerwise, [unit], list(TASKS), WEIGHT).measure(Schedule.parse(text), 0)
                made = {"name": name, "moment": moment, "schedule": text, "unit": number, **measured(found)}
                append(name_of, made)

    if first == 0:
        measure("all-full", "before", full, bench.model)
    for name, (_, text) in wanted.items():
        measure(name, "before", text, bench.model)
        if all((name, "after", number) in done for number in range(UNITS)):
            continue
        if student is None or copied is None:
            student = load_pretrained(model, check=False).to(device)
            original = {key: value.clone() for key, value in student.state_dict().items()}
            copied = load_pretrained(model, check=False, dtype=str(bench.model.decoder.model.dtype)[6:]).to(device)
        student.load_state_dict(original)
        student.requires_grad_(True).train()
        student.distil_from(bench.model.decoder, weight)
        bench.model.decoder.set_schedule(Schedule.parse(full))
        student.set_schedule(Schedule.parse(text))
        optimizer, began = make_optimizer(student, training), time.perf_counter()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * learning_rate_factor(step, training)
            # Fewer sequences than the steps need are taken again from the beginning.
            picked = [at % len(texts) for at in range(step * rows, (step + 1) * rows)]
            batch = torch.from_numpy(texts[picked]).to(device)
            with torch.autocast(batch.device.type, torch.bfloat16):
                loss: Any = student(batch[:, :-1], batch[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), training.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = round(time.perf_counter() - began, 1)
        spent = {"steps": steps, "rows": rows, "seconds": seconds, "device": str(device_name(device))}
        append(f"{name_of}-seconds", {"name": name, **spent, "loss": float(loss.detach())})
        copied.load_state_dict({k: v.to(copied.state_dict()[k].dtype) for k, v in student.state_dict().items()})
        measure(name, "after", text, Layerwise(copied))


def measurements(moment: str, study: str) -> Held:
    """Return the measurements of a moment, by name."""
    return Held(
        {**r, "schedule": r["name"]}
        for r in lines(study)
        if r["moment"] in (moment, "before") and (r["moment"] == moment or r["name"] == "all-full")
    )


def table(study: str = "heal") -> list[str]:
    """Return what healing changes as lines of Markdown, from the records alone."""
    from layersearch.results.stats import rank_correlation

    before, after = measurements("before", study), measurements("after", study)
    spent = lines(f"{study}-seconds")[0]
    tokens = spent.get("rows", 1) * 1024
    names = [name for name in after.by if name != "all-full"]
    texts = {r["name"]: r["schedule"] for r in lines(study)}
    made = []
    for name in names:
        cells = [name, full_layers(texts[name])]
        for held in (before, after):
            found = held.minus(name, "all-full", "text")
            cells += [f"{found.mean:+.3f} ± {found.half_width:.3f}", f"{held.mean(name, 'accuracy'):.2f}"]
        made.append((after.mean(name, "text"), "| " + " | ".join(cells) + " |"))
    out = [
        f"{spent['steps']} steps of {tokens:,} tokens each, {len(after.units)} held-out documents; text loss minus",
        f"the original's, paired. The original: {after.mean('all-full', 'text'):.3f} nats, "
        f"{after.mean('all-full', 'accuracy'):.2f} of the digits right.",
        "",
        "| schedule @ budget | full layers | before: text, nats | digits | after: text, nats | digits |",
        "|---|---|---|---|---|---|",
        *(row for _, row in sorted(made)),
        "",
        "| Spearman, before against after | all | of budget 0.27 | of budget 0.4 |",
        "|---|---|---|---|",
    ]
    for key, said in (("loss", "loss (text and answers)"), ("text", "text"), ("answers", "answers")):
        cells = [said]
        for budget in ("", "@ 0.27", "@ 0.4"):
            some = [name for name in names if name.endswith(budget)]
            found = rank_correlation([before.mean(n, key) for n in some], [after.mean(n, key) for n in some])
            cells.append(
                "too few"
                if found is None
                else f"{found.spearman:.2f} ({found.bounds(found.spearman_low, found.spearman_high)}, n = {found.n})"
            )
        out.append("| " + " | ".join(cells) + " |")
    out += [
        "",
        "| sinks less no sinks, at equal cost | before: text, nats | after: text, nats | after: digits |",
        "|---|---|---|---|",
    ]
    for name in names:
        other = name.replace(", sinks", ", no sinks")
        if ", sinks" in name and other in names:
            cells = [name.replace(", sinks", "")]
            for held, key in ((before, "text"), (after, "text"), (after, "accuracy")):
                found = held.minus(name, other, key)
                cells.append(f"{found.mean:+.3f} ± {found.half_width:.3f}")
            out.append("| " + " | ".join(cells) + " |")
    return out

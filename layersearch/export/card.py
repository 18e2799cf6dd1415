"""A model card, README.md, of an exported model: its schedule, what was measured of it, and how to load it.

The metadata holds a ``model-index`` as the Hugging Face hub reads it. Nothing in a card names a path of this machine.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layersearch.errors import ExportError
from layersearch.schedule import Schedule

NAME = "README.md"
_MARK = "<!-- layersearch card: written again by the next export; remove this line to keep the file as it is. -->"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number that was measured of the schedule."""

    name: str
    """For a person, for example ``text loss, nats``."""
    kind: Literal["loss", "accuracy"]
    value: float
    low: float | None = None
    """Lower end of the interval; None: there is none."""
    high: float | None = None
    n: int = 1
    """Number of documents or seeds."""
    to_full: str = ""
    """Difference to full attention, with its interval, as text."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beyond the schedule."""

    evidence: str = ""
    """What was measured and on what, in a sentence."""
    unit: str = ""
    """What an interval is over: ``held-out documents`` or ``fresh seeds``; empty: no interval."""
    verdict: str = ""
    data: str = ""
    """Source of the text, for example ``stdlib``; no path."""
    dataset: str | None = None
    """Hub id of the data set, if it is one."""
    seq_len: int | None = None
    cost: float | None = None
    """Attention FLOPs as a share of all-full's at ``seq_len`` tokens."""
    base: str | None = None
    """The pre-trained model, as the user named it."""
    measures: tuple[Measure, ...] = ()
    positions: tuple[tuple[int, float], ...] = ()
    """(right edge in tokens, loss in nats)."""


def check_card(out: Path) -> None:
    """Raise ExportError if the folder holds a README.md that no export wrote: it would be lost."""
    path = out / NAME
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ExportError(f"{path} is there already and no export wrote it; name another folder, or leave out --card")


def card_text(schedule: Schedule, target: str, name: str, facts: CardFacts) -> str:
    """Return the card.

    Args:
        schedule: one span per layer.
        target: ``hf``, ``hf-remote``, ``mlx`` or ``gguf``.
        name: of the model, for its title.
        facts: what was measured.

    Raises:
        ExportError: the hub's own check refuses the metadata; names what it says.
    """
    title = re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
    parts = [
        _metadata(target, title, facts),
        _MARK,
        f"# {title}",
        _schedule_section(schedule, facts),
        _measured_section(facts),
        _load_section(target),
        _limits_section(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(target: str, title: str, facts: CardFacts) -> str:
    """Return the YAML block, as huggingface_hub writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    source = facts.dataset or facts.data or "text"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=source,
            metric_type=measure.kind,
            metric_name=measure.name,
            metric_value=round(measure.value, 5),
        )
        for measure in facts.measures
    ]
    more: dict[str, Any] = {"model_name": title, "eval_results": results} if results else {}
    if (base := public_name(facts.base)) is not None:
        more["base_model"] = base
    if facts.dataset is not None:
        more["datasets"] = [facts.dataset]
    library = {"hf": "transformers", "hf-remote": "transformers", "mlx": "mlx", "gguf": "gguf"}[target]
    try:
        data = ModelCardData(
            library_name=library,
            pipeline_tag="text-generation",
            tags=["layersearch", "sliding-window-attention"],
            **more,
        )
        return f"---\n{data.to_yaml()}\n---"
    except ValueError as error:
        raise ExportError(f"the card's metadata is refused ({error}); leave out --card, and report this") from None


def public_name(model: str | None) -> str | None:
    """Return a model's hub id, or None: a path of a machine is not for others."""
    given = model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not os.path.exists(model)
    return model if given else None


def _schedule_section(schedule: Schedule, facts: CardFacts) -> str:
    lines = ["## Schedule", "", f"`{schedule}`", ""]
    count = f"{schedule.n_full} of {len(schedule)} layers have full attention."
    if facts.cost is not None and facts.seq_len is not None:
        count += (
            f" At {facts.seq_len:,} tokens, attention takes {facts.cost:.1%} of the FLOPs of full attention in every "
        )
        count += "layer (one multiply-add = one FLOP)."
    lines += [count, "", "| layers | span |", "|---|---|"]
    for span, group in itertools.groupby(enumerate(schedule), key=lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        where = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        lines.append(f"| {where} | `{span}` |")
    return "\n".join(lines)


def _measured_section(facts: CardFacts) -> str:
    lines = ["## What was measured", ""]
    if not facts.measures:
        return "\n".join([*lines, "Nothing was measured of this model with this schedule."])
    lines += [
        facts.evidence,
        "",
        "| measure | value | 95% interval | n | minus full attention |",
        "|---|---|---|---|---|",
    ]
    for one in facts.measures:
        interval = "none" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"
        lines.append(f"| {one.name} | {one.value:.4f} | {interval} | {one.n} | {one.to_full} |")
    if facts.unit:
        lines += ["", f"Intervals are Student's t over {facts.unit}."]
    if facts.positions:
        lines += ["", "| tokens up to position | " + " | ".join(f"{edge:,}" for edge, _ in facts.positions) + " |"]
        lines += ["|---" * (len(facts.positions) + 1) + "|"]
        lines += ["| loss, nats | " + " | ".join(f"{loss:.3f}" for _, loss in facts.positions) + " |"]
    if facts.verdict:
        lines += ["", facts.verdict]
    lines += ["", f"Data: {facts.data}."]
    return "\n".join(lines)


_LOAD: Mapping[str, str] = {
    "hf": (
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH")\n```'
    ),
    "hf-remote": (
        "The folder brings its modeling file. Read it before you trust it.\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)\n```'
    ),
    "mlx": "```\nmlx_lm.generate --model PATH --prompt TEXT\n```",
    "gguf": "```\nllama-cli -m PATH/model.gguf -p TEXT\n```",
}
_ENGINES: Sequence[tuple[str, str, str]] = (
    ("transformers", "hf", "`AutoModelForCausalLM.from_pretrained`"),
    ("MLX-LM", "mlx", "`mlx_lm.generate --model DIR`"),
    ("llama.cpp", "gguf", "`llama-cli -m DIR/model.gguf`"),
    ("vLLM", "vllm", "`vllm serve PATH --config DIR/vllm.yaml`"),
    ("SGLang", "sglang", "`python -m sglang.launch_server --model-path PATH --config DIR/sglang.yaml`"),
)


def _load_section(target: str) -> str:
    lines = ["## Load it", "", _LOAD[target]]
    if target in ("hf", "hf-remote"):
        lines += ["", "For other engines, write their files from this folder (PATH) to a folder DIR:", ""]
        lines += ["| engine | write | then |", "|---|---|---|"]
        for engine, other, then in _ENGINES:
            if other != "hf":
                lines.append(f"| {engine} | `layersearch export PATH --to {other} --out DIR` | {then} |")
        lines += ["", "An engine that cannot hold this schedule is refused, with the reason."]
    lines += ["", "`layersearch verify-export` proves by experiment that a folder does what `schedule.yaml` says."]
    return "\n".join(lines)


def _limits_section(facts: CardFacts) -> str:
    lines = ["## Limits", ""]
    if facts.measures:
        lines.append(
            "- The numbers hold for the data and the length named above. Other text can rank schedules otherwise."
        )
        lines.append("- An interval that holds 0 says that no difference was found, not that there is none.")
    lines.append("- Nothing here says whether the model's answers are right or safe; that is the base model's card.")
    return "\n".join(lines)

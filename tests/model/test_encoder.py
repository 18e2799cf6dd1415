"""The encoder: it sees both ways, within its spans, and a trial trains it on masked text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layersearch.config.model import ModelConfig
from layersearch.config.recipe import load_recipe
from layersearch.errors import ConfigError, ExportError
from layersearch.export import export
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from tests.data.test_source_contract import TEXTS

SIZE = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}


def moved(kind: str, text: str, token: int) -> list[int]:
    """Return the tokens whose residual stream changes when one token of 24 does."""
    schedule = Schedule.parse(text)
    torch.manual_seed(0)
    model = Decoder(ModelConfig(kind=kind, n_layers=len(schedule), **SIZE), 11, schedule).double()  # type: ignore[arg-type]
    tokens = torch.arange(24)[None] % 7
    other = tokens.clone()
    other[0, token] = 9
    with torch.no_grad():
        changed = (model.stream(tokens) - model.stream(other)).abs().amax(-1)[0] > 1e-12
    return changed.nonzero()[:, 0].tolist()


def test_encoder_tokens_see_both_ways_and_a_decoders_only_back() -> None:
    assert moved("decoder", "full", 12) == list(range(12, 24))
    assert moved("encoder", "full", 12) == list(range(24))
    # Two windows of 2 keys on each side reach 4 tokens either way.
    assert moved("encoder", "window:2*2", 12) == list(range(8, 17))
    # Blocks of 8, then staggered ones: from the block 8 ... 15 into 4 ... 19.
    assert moved("encoder", "block:8 block:8~4", 12) == list(range(4, 20))
    # Token 12 reaches the global token in one layer, and through it all tokens in the next.
    assert moved("encoder", "window:2+global:first:1", 12) == [0, *range(10, 15)]
    assert moved("encoder", "window:2+global:first:1*2", 12) == list(range(24))
    # BigBird without random blocks: the first and the last of four blocks of 6 see all, others their neighbors.
    assert moved("encoder", "bigbird:4/0", 9) == [*range(16), *range(20, 24)]
    # Token 2 is in the first of two summaries, which all tokens of an encoder see. A decoder's later blocks see it.
    assert moved("encoder", "window:1+summary:12", 2) == list(range(24))
    assert moved("decoder", "window:1+summary:12", 2) == [2, *range(12, 24)]
    # A rest of 4 tokens joins the last summary of an encoder and is in none of a decoder.
    assert moved("encoder", "window:1+summary:10", 23) == list(range(24))
    assert moved("decoder", "window:1+summary:10", 21) == [21]


def test_encoder_schedule_of_a_decoder_is_refused_by_its_space() -> None:
    with pytest.raises(ConfigError, match="in a causal model"):
        BoundSpace(load_space("smoke-encoder"), n_layers=2, seq_len=48, n_heads=2)
    with pytest.raises(ConfigError, match="for causal models"):
        BoundSpace(load_space("patterns"), n_layers=2, seq_len=512, n_heads=2, bidirectional=True)


def test_encoder_is_exported_by_targets_for_encoders_only(tmp_path: Path) -> None:
    schedule = Schedule.parse("full window:4+global:first:1")
    asked = {"model": load_recipe("smoke-encoder").model, "vocab_size": 301, "seq_len": 48}
    (path,) = export(schedule, "yaml", **asked, out=tmp_path / "new")
    assert "global_first: 1" in path.read_text()
    for target in ("gguf", "flex", "vllm"):
        with pytest.raises(ExportError, match="give --to hf, hf-remote, yaml or json"):
            export(schedule, target, **asked, out=tmp_path / target)


@pytest.mark.integration
def test_encoder_trial_trains_on_masked_text_at_its_exact_cost(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    changes = ["data.source=text", f"data.files=[{tmp_path / 'a.txt'}]", "training.steps=40"]
    recipe = load_recipe("smoke-encoder", changes)
    schedule = Schedule.parse("full window:4+global:first:1")
    pool = LocalPool(recipe, 1, tmp_path / "logs", tmp_path / "cache")
    try:
        record = pool.submit(Trial(schedule=schedule, seed=0, checkpoints=(1,))).result()
    finally:
        pool.close()
    assert record.state == "complete", record.error
    assert record.cost == BoundSpace.of(load_space("smoke-encoder"), recipe).cost(schedule)
    assert record.curve[-1][1] < record.curve[0][1]
    assert 0.0 <= dict(record.metrics)["accuracy"] <= 1.0

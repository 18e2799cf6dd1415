"""The decoder beside an encoder: T5Gemma's configuration holds a schedule of its own; those of LED and LongT5 are full.

Read from transformers 5.23: LED's decoder is BART's and LongT5's is T5's, and neither reads a window. T5Gemma's decoder
has ``layer_types`` and a ``sliding_window`` of W keys, the token itself counted, as the span ``window:W`` of a causal
model. The same number in its encoder is W keys on each side. Its cross attention is full.
"""

from __future__ import annotations

from typing import Any

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, located
from layersearch.export.capabilities import Capabilities
from layersearch.export.encoders.family import ENCODERS, WORDS, EncoderFamily
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.span import FULL
from layersearch.schedule.work import stacks


def both_schedules(schedule: Schedule, model: ModelConfig) -> tuple[Schedule, Schedule]:
    """Return the schedules of a recipe's encoder and decoder; a decoder that it has not is full."""
    if model.kind == "encoder_decoder":
        return stacks(model, schedule)
    return schedule, presets.all_full(model.n_layers)


def check_decoder(schedule: Schedule, family: EncoderFamily, model: ModelConfig, seq_len: int) -> None:
    """Refuse a family without a decoder for a recipe's encoder-decoder, and a schedule that its decoder does not hold.

    Raises:
        ExportError: names the family and the remedy; an `UnsupportedSchedule` if there is a nearest schedule.
    """
    if model.kind != "encoder_decoder":
        return
    if not family.decoder:
        known = ", ".join(one.name for one in ENCODERS.values() if one.decoder)
        raise ExportError(
            f"--family {family.name} has no decoder, and the recipe's model is an encoder-decoder; give {known}"
        )
    searched = model.searched == "decoder"
    if not family.decoder_windows:
        if searched or schedule.n_full < len(schedule):
            where = "" if searched else "model.other_schedule "
            raise ExportError(
                f"{where}{schedule}: the decoder of family {family.name} is full and holds no schedule; give --family "
                "t5gemma, or --to yaml or json"
            )
        return
    held = Capabilities(name=f"the decoder of family {family.name}")
    if searched:
        held.check(schedule, seq_len=seq_len, n_heads=model.n_heads)
    elif (problem := held.problem(schedule)) is not None:
        raise ExportError(f"model.other_schedule: {problem}; give full layers and one window, or --to yaml or json")


def decoder_fields(schedule: Schedule, seq_len: int) -> dict[str, Any]:
    """Return the fields of T5Gemma's decoder; ``seq_len`` tokens is for a size that no layer uses."""
    size = next((span.size for span in schedule if span.size is not None), seq_len)
    return {"layer_types": [WORDS[span.kind] for span in schedule], "sliding_window": size}


def decoder_schedule(config: Any, where: str) -> Schedule:
    """Return the schedule that transformers runs in the decoder of T5Gemma's configuration object."""
    own = config.decoder
    kinds = {word: kind for kind, word in WORDS.items()}
    spans = []
    with located(where):
        for layer, word in enumerate(own.layer_types):
            if word not in kinds:
                raise ExportError(f"decoder: layer {layer} is {word}, which no span says; known: {', '.join(kinds)}")
            spans.append(FULL if kinds[word] == "full" else Span(kind="window", size=own.sliding_window))
    return Schedule(tuple(spans))

"""The proxy model of a recipe's trials: a decoder, an encoder, both, or one with memories."""

from __future__ import annotations

from layersearch.config.recipe import Recipe
from layersearch.model.classifier import Classifier
from layersearch.model.decoder import Decoder
from layersearch.model.encoder_decoder import EncoderDecoder
from layersearch.model.recurrent import Recurrent
from layersearch.schedule import Schedule
from layersearch.schedule.work import Work


def new_model(recipe: Recipe, vocab_size: int, schedule: Schedule, compiled: bool = False) -> Decoder:
    """Return a model with random weights, drawn from the current random state.

    Args:
        recipe: of the trial.
        vocab_size: number of token ids.
        schedule: one span per layer of the stack that schedules speak of.
        compiled: compile the code between attention calls, where the model has such.
    """
    work = Work.of(recipe)
    if work.segment is not None:
        memories = tuple(map(work.memory, schedule))
        return Recurrent(recipe.model, vocab_size, schedule, segment=work.segment, memories=memories)
    if recipe.data.n_classes is not None:
        return Classifier(recipe.model, vocab_size, schedule, compiled, classes=recipe.data.n_classes)
    kind = EncoderDecoder if recipe.model.kind == "encoder_decoder" else Decoder
    return kind(recipe.model, vocab_size, schedule, compiled)

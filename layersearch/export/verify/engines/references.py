"""What a model computes under any schedule: transformers' modules, with layersearch's own dense mask in every layer.

The masks come from `Span.visible`. The library's own masks, and so its reading of a schedule, are not used. Where a
layer's type switches its positions as well, the model is built with the types of the schedule in question.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layersearch.errors import ExportError, one_line
from layersearch.export.families import FAMILIES, make_config
from layersearch.export.hf import schedule_fields
from layersearch.export.verify.loading import decoder_layers
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule, Span

_BY_TYPE = {family.model_type: family for family in FAMILIES.values()}


def candidates(asked: Schedule, unused: int) -> Iterator[tuple[str, Schedule]]:
    """Yield names and schedules that an engine may run instead of ``asked``, which comes first.

    They are one key less, one key more, all-full, every layer sparse, and each layer flipped. ``unused`` is the size in
    tokens of a flipped layer where no layer is sparse.
    """
    seen = {asked}
    sparse = next((span for span in asked if not span.is_full), Span(kind="window", size=unused))
    full = Span(kind="full")

    def resized(by: int) -> Schedule:
        return Schedule(
            tuple(span if span.size is None else Span(kind=span.kind, size=max(1, span.size + by)) for span in asked)
        )

    others = [
        ("one key less", resized(-1)),
        ("one key more", resized(1)),
        ("all-full", Schedule((full,) * len(asked))),
        ("every layer sparse", Schedule((sparse,) * len(asked))),
    ]
    for layer, span in enumerate(asked):
        other = sparse if span.is_full else full
        flipped = Schedule(tuple(other if i == layer else one for i, one in enumerate(asked)))
        others.append((f"layer {layer} as {other}", flipped))
    yield "as asked", asked
    for name, schedule in others:
        if schedule not in seen:
            seen.add(schedule)
            yield name, schedule


class Reference:
    """A model of given weights that runs any schedule of plain spans."""

    def __init__(
        self,
        values: Mapping[str, Any],
        state: Mapping[str, Tensor],
        where: str,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        """Take a decoder's ``config.json`` and its state dict; ``where`` begins an error's text.

        ``prepare`` is applied to each model that is built.
        """
        self._values, self._state, self._where, self._prepare = values, state, where, prepare
        self._family = _BY_TYPE.get(values["model_type"])
        self._model: Any = None

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], schedule: Schedule) -> Tensor:
        """Return log-probabilities (tokens, V) of the token after each, under a schedule."""
        model = self._built(schedule)
        masks = {span: _mask(span, len(ids)) for span in schedule}
        hooks = [
            layer.register_forward_pre_hook(_WithMask(masks[span], self._where), with_kwargs=True)
            for layer, span in zip(decoder_layers(model, len(schedule)), schedule, strict=True)
        ]
        try:
            logits: Tensor = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return logits.float().log_softmax(-1)

    def _built(self, schedule: Schedule) -> Any:
        family = self._family
        # A layer's type may switch its positions; GPT-Neo's attention holds a mask of its own.
        fixed = family is None or (family.position_change is None and family.rope != "none")
        if self._model is not None and fixed:
            return self._model
        values = dict(self._values)
        if family is not None and family.capabilities.problem(schedule) is None:
            values |= schedule_fields(schedule, family, values.get("max_position_embeddings", 1024))
        self._model = load_state(values, self._state, self._where)
        if self._prepare is not None:
            self._prepare(self._model)
        return self._model


def load_state(values: Mapping[str, Any], state: Mapping[str, Tensor] | None, where: str) -> Any:
    """Return transformers' model of a configuration, in float32, with eager attention and the weights of ``state``."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = make_config(values["model_type"], copy.deepcopy(dict(values)), where)
    config._attn_implementation = "eager"
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            factory: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model = factory(config).float().eval()
            if state is not None:
                missing = model.load_state_dict(dict(state), strict=False)
                if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
                    name = next(iter((*missing.unexpected_keys, *missing.missing_keys)))
                    raise ValueError(f"tensor {name}")
                if missing.missing_keys:
                    model.lm_head.weight = model.get_input_embeddings().weight
    except Exception as error:  # models raise many kinds
        raise ExportError(f"{where}: the reference cannot be built ({one_line(error)}); correct it") from None
    return model


def _mask(span: Span, tokens: int) -> Tensor:
    """Return what a span hides as an additive mask (1, 1, tokens, tokens)."""
    at = torch.arange(tokens)
    hidden = ~span.visible(at[:, None], at[None, :])
    return torch.zeros(1, 1, tokens, tokens).masked_fill(hidden, torch.finfo(torch.float32).min)


class _WithMask:
    """A forward pre-hook that puts a mask in the place of the library's."""

    def __init__(self, mask: Tensor, where: str) -> None:
        self._mask, self._where = mask, where

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "attention_mask" not in kwargs:
            raise ExportError(f"{self._where}: {type(module).__name__} takes no attention_mask; drop --engine")
        return args, kwargs | {"attention_mask": self._mask}

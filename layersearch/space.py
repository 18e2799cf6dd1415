"""A search space: what may vary per layer. Read from ``search_spaces/*.yaml``.

A space names spans; bound to a model's size it becomes a fixed set of categorical variables, one per group of layers
that share a choice. Nothing here enumerates schedules: 6 choices for 48 layers are 6**48 of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from layersearch import presets
from layersearch.choices import expand, span_texts
from layersearch.config import build, find_file, read_yaml
from layersearch.cost import budget_ratio, span_pairs
from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import Schedule, Span


@dataclass(frozen=True, kw_only=True)
class Space:
    """What each layer may be, before the model's size is known.

    Raises:
        UserError: names the key that is wrong and the remedy.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Names the space in reports."""
    choices: tuple[str, ...]
    """Text forms of the spans that a layer may have."""
    layers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Fewer choices for single layers, by layer counted from 0."""
    tied: tuple[tuple[int, ...], ...] = ()
    """Groups of layers that share one choice."""
    pattern: int | None = None
    """Layer i takes the choice of layer i mod pattern; None: layers vary freely, but for ``tied``."""
    budget: float | None = None
    """Largest cost of a schedule, as a share of the all-full schedule's; None: the command names it."""
    baseline_span: str | None = None
    """The sparse span of the bottom, top, middle and interleaved baselines; None: the cheapest of the choices."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("name is empty; give the space a name")
        object.__setattr__(self, "choices", span_texts(self.choices, "choices"))
        restricted = {}
        for layer, texts in self.layers.items():
            if layer < 0:
                raise UserError(f"layers: there is no layer {layer}; count from 0")
            chosen = span_texts(texts, f"layers.{layer}")
            for text in chosen:
                if text not in self.choices:
                    raise UserError(f"layers.{layer}: {text} is not among choices{did_you_mean(text, self.choices)}")
            restricted[layer] = chosen
        object.__setattr__(self, "layers", restricted)
        self._check_ties()
        if self.budget is not None:
            _check_range(self.budget)
        if self.baseline_span is not None:
            span = Span.parse(self.baseline_span)
            if span.is_full or str(span) not in self.choices:
                sparse = [text for text in self.choices if not Span.parse(text).is_full]
                raise UserError(f"baseline_span: {span} is not a sparse choice{did_you_mean(str(span), sparse)}")
            object.__setattr__(self, "baseline_span", str(span))

    def _check_ties(self) -> None:
        if self.pattern is not None:
            if self.tied:
                raise UserError("tied and pattern exclude each other; keep one of them")
            if self.pattern < 1:
                raise UserError(f"pattern must be at least 1 layer, not {self.pattern}")
        seen: set[int] = set()
        for group in self.tied:
            if len(group) < 2:
                raise UserError(f"tied: a group needs at least two layers, not {list(group)}")
            for layer in group:
                if layer < 0:
                    raise UserError(f"tied: there is no layer {layer}; count from 0")
                if layer in seen:
                    raise UserError(f"tied: layer {layer} stands in it twice; name it once")
                seen.add(layer)

    def bind(self, *, n_layers: int, seq_len: int, n_heads: int) -> BoundSpace:
        """Return the space for a model of this size.

        Args:
            n_layers: layers L.
            seq_len: tokens in a sequence; every span must fit.
            n_heads: query heads.

        Raises:
            UserError: if a span is longer than the text or dilates more heads than there are, a named layer does not
                exist, or tied layers have no choice in common.
        """
        return BoundSpace(self, n_layers=n_layers, seq_len=seq_len, n_heads=n_heads)


class BoundSpace:
    """A space for one model size: its variables, its schedules and their cost."""

    def __init__(self, space: Space, *, n_layers: int, seq_len: int, n_heads: int) -> None:
        self.space, self.n_layers, self.seq_len, self.n_heads = space, n_layers, seq_len, n_heads
        where = f"search space {space.name!r}"
        spans = {text: Span.parse(text) for text in space.choices}
        for text, span in spans.items():
            try:
                Schedule((span,)).check(seq_len=seq_len, n_heads=n_heads)
            except UserError as error:
                raise UserError(f"{where}: choice {text}: {str(error).removeprefix('layer 0: ')}") from None
        for layer in sorted({*space.layers, *itertools.chain.from_iterable(space.tied)}):
            if layer >= n_layers:
                raise UserError(
                    f"{where}: there is no layer {layer} in a model of {n_layers}; the last is {n_layers - 1}"
                )
        if space.pattern is not None and space.pattern > n_layers:
            raise UserError(
                f"{where}: pattern {space.pattern} is longer than the model's {n_layers} layers; shorten it"
            )

        self.groups: tuple[tuple[int, ...], ...] = tuple(_groups(space, n_layers))
        """Layers that share one choice, each group sorted, the groups sorted by their first layer."""
        options = []
        for group in self.groups:
            allowed = [text for text in space.choices if all(text in space.layers.get(at, (text,)) for at in group)]
            if not allowed:
                raise UserError(f"{where}: layers {list(group)} share a choice but 'layers' leaves them none in common")
            options.append(tuple(spans[text] for text in allowed))
        self.options: tuple[tuple[Span, ...], ...] = tuple(options)
        """The choices of each group, in the file's order."""
        digits = max(2, len(str(n_layers - 1)))
        self._names = tuple(f"layer_{group[0]:0{digits}d}" for group in self.groups)
        self._pairs = {span: span_pairs(span, seq_len, n_heads) for span in spans.values()}
        self._full_pairs = n_layers * span_pairs(presets.FULL, seq_len, n_heads)

    @property
    def variables(self) -> dict[str, tuple[str, ...]]:
        """One categorical per group that has a choice: its name (after its first layer) and the spans' texts."""
        return {
            name: tuple(str(span) for span in options)
            for name, options in zip(self._names, self.options, strict=True)
            if len(options) > 1
        }

    @property
    def size(self) -> int:
        """The number of schedules, exactly."""
        return math.prod(len(options) for options in self.options)

    def decode(self, params: Mapping[str, str]) -> Schedule:
        """Return the schedule that values of `variables` stand for.

        Raises:
            UserError: if a variable is missing, not known, or has a value that is none of its choices.
        """
        variables = self.variables
        for name in params:
            if name not in variables:
                raise UserError(f"the search space has no variable {name!r}{did_you_mean(name, variables)}")
        chosen = []
        for name, options in zip(self._names, self.options, strict=True):
            if len(options) == 1:
                chosen.append(options[0])
                continue
            if name not in params:
                raise UserError(f"the variable {name!r} is missing; give one of {', '.join(variables[name])}")
            if params[name] not in variables[name]:
                raise UserError(f"{name}: {params[name]!r} is no choice{did_you_mean(params[name], variables[name])}")
            chosen.append(options[variables[name].index(params[name])])
        return self._schedule(chosen)

    def encode(self, schedule: Schedule) -> dict[str, str] | None:
        """Return the values of `variables` that stand for a schedule; None where it lies outside the space."""
        if len(schedule) != self.n_layers:
            return None
        params = {}
        for name, group, options in zip(self._names, self.groups, self.options, strict=True):
            span = schedule[group[0]]
            if span not in options or any(schedule[layer] != span for layer in group):
                return None
            if len(options) > 1:
                params[name] = str(span)
        return params

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that the space does not hold.

        Raises:
            UserError: names the space.
        """
        if len(schedule) != self.n_layers:
            raise UserError(
                f"schedule '{schedule}' has {len(schedule)} layers, the model {self.n_layers}; give one span per layer"
            )
        if self.encode(schedule) is None:
            raise UserError(f"schedule '{schedule}' lies outside search space {self.space.name!r}")

    def cost(self, schedule: Schedule) -> float:
        """Return the exact cost as a share of the all-full schedule's."""
        try:
            return sum([self._pairs[span] for span in schedule]) / self._full_pairs
        except KeyError:  # all-full, in a space that does not hold it
            return budget_ratio(schedule, seq_len=self.seq_len, n_heads=self.n_heads)

    def cheapest(self) -> Schedule:
        """Return the schedule of lowest cost; of equal choices, the first in the file."""
        return self._schedule([min(options, key=self._pairs.__getitem__) for options in self.options])

    @property
    def cost_range(self) -> tuple[float, float]:
        """The lowest and the highest cost of a schedule in the space, as shares of the all-full schedule's."""
        dearest = self._schedule([max(options, key=self._pairs.__getitem__) for options in self.options])
        return self.cost(self.cheapest()), self.cost(dearest)

    def check_budget(self, budget: float) -> None:
        """Refuse a budget that no schedule of the space can meet.

        Raises:
            UserError: if it lies outside (0, 1] or below the cheapest schedule; names the lowest that can be met.
        """
        _check_range(budget)
        lowest = self.cost_range[0]
        if budget < lowest:
            raise UserError(
                f"budget {budget:g} is below what search space {self.space.name!r} can reach: its cheapest schedule "
                f"({self.cheapest()}) costs {lowest:.4g}; raise the budget to {math.ceil(lowest * 1e4) / 1e4:g} "
                "or add a smaller span to choices"
            )

    def named_baselines(self, budget: float) -> dict[str, Schedule]:
        """Return the baselines that every search trains, by name.

        ``all_full`` (the reference of every cost, trained even where the space does not hold it), ``all_sparse`` (the
        cheapest sparse choice everywhere), and ``bottom(l)``, ``top(l)``, ``middle(l)`` and ``interleaved(l)``, each at
        the largest 1 <= l < n_layers that costs at most the budget and that the space can express; where there is none,
        the name is absent. Every schedule stands here once; if several names mean it, its key holds them all, as in
        ``"middle(1) = interleaved(1)"``.

        Args:
            budget: largest cost, as a share of the all-full schedule's.

        Raises:
            UserError: as `check_budget`.
        """
        self.check_budget(budget)
        sparse = [[span for span in options if not span.is_full] or list(options) for options in self.options]
        all_sparse = self._schedule([min(options, key=self._pairs.__getitem__) for options in sparse])
        all_full = presets.all_full(self.n_layers)
        named: dict[Schedule, list[str]] = {all_sparse: ["all_sparse"]}
        span = self.baseline_span
        if span is not None:
            for place in (presets.bottom, presets.top, presets.middle, presets.interleaved):
                for l in range(self.n_layers - 1, 0, -1):  # noqa: E741
                    schedule = place(self.n_layers, l, span)
                    if self.cost(schedule) <= budget and self.encode(schedule) is not None:
                        named.setdefault(schedule, []).append(f"{place.__name__}({l})")
                        break
        named.pop(all_full, None)  # a space that is full everywhere: nothing in it is sparse
        return {"all_full": all_full} | {" = ".join(names): schedule for schedule, names in named.items()}

    @property
    def baseline_span(self) -> Span | None:
        """The sparse span of the named baselines: the one the space states, or its cheapest; None: it has none."""
        if self.space.baseline_span is not None:
            return Span.parse(self.space.baseline_span)
        sparse = [span for span in self._pairs if not span.is_full]
        return min(sparse, key=self._pairs.__getitem__, default=None)

    def sample(self, rng: Random) -> Schedule:
        """Return a schedule drawn uniformly from the space."""
        return self._schedule([rng.choice(options) for options in self.options])

    def repair(self, params: Mapping[str, str], budget: float, rng: Random) -> Schedule:
        """Return a schedule within the budget that differs from a proposal in as few variables as possible.

        Of all sets of variables of that smallest number, one is drawn; those variables take their cheapest choice and
        then, in random order, the most expensive that still fits. The same generator state gives the same schedule.

        Args:
            params: a proposal, as for `decode`; returned unchanged where it is within the budget.
            budget: largest cost, as a share of the all-full schedule's.
            rng: decides between equally near schedules.

        Raises:
            UserError: as `decode` and `check_budget`.
        """
        self.check_budget(budget)
        proposal = self.decode(params)
        chosen = [proposal[group[0]] for group in self.groups]
        # The comparison is made on the ratio itself, so that no rounding can put a repaired schedule over the budget.
        used = sum(self._pairs[span] * len(group) for span, group in zip(chosen, self.groups, strict=True))
        least = [min(options, key=self._pairs.__getitem__) for options in self.options]
        saving = [
            (self._pairs[span] - self._pairs[low]) * len(group)
            for span, low, group in zip(chosen, least, self.groups, strict=True)
        ]

        def fits(pairs: int) -> bool:
            return pairs / self._full_pairs <= budget

        if fits(used):
            return proposal
        ordered = sorted(saving, reverse=True)
        number = next(k for k in range(1, len(ordered) + 1) if fits(used - sum(ordered[:k])))
        changed: list[int] = []
        for left in range(number - 1, -1, -1):
            # A variable may be drawn if the `left` best of the others can still bring the cost down to the budget.
            open_ = [at for at in range(len(saving)) if at not in changed]
            drawable = []
            for at in open_:
                best = sorted((saving[other] for other in open_ if other != at), reverse=True)[:left]
                if fits(used - saving[at] - sum(best)):
                    drawable.append(at)
            changed.append(rng.choice(drawable))
            used -= saving[changed[-1]]
        for at in changed:
            chosen[at] = least[at]
        rng.shuffle(changed)
        for at in changed:
            width, low = len(self.groups[at]), self._pairs[least[at]]
            fitting = [span for span in self.options[at] if fits(used + (self._pairs[span] - low) * width)]
            most = max(self._pairs[span] for span in fitting)
            chosen[at] = rng.choice([span for span in fitting if self._pairs[span] == most])
            used += (most - low) * width
        return self._schedule(chosen)

    def schedules(self) -> Iterator[Schedule]:
        """Yield every schedule; for small spaces only."""
        return map(self._schedule, itertools.product(*self.options))

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """Yield every schedule that differs in one variable.

        Raises:
            UserError: if the schedule lies outside the space.
        """
        self.check(schedule)
        chosen = [schedule[group[0]] for group in self.groups]
        for at, options in enumerate(self.options):
            for span in options:
                if span != chosen[at]:
                    yield self._schedule([*chosen[:at], span, *chosen[at + 1 :]])

    def neighbour(self, schedule: Schedule, rng: Random) -> Schedule:
        """Return one of `neighbours`, drawn uniformly over variables and then over their other choices."""
        chosen = [schedule[group[0]] for group in self.groups]
        at = rng.choice([at for at, options in enumerate(self.options) if len(options) > 1])
        chosen[at] = rng.choice([span for span in self.options[at] if span != chosen[at]])
        return self._schedule(chosen)

    def _schedule(self, chosen: Sequence[Span]) -> Schedule:
        spans: list[Span | None] = [None] * self.n_layers
        for group, span in zip(self.groups, chosen, strict=True):
            for layer in group:
                spans[layer] = span
        return Schedule(tuple(span for span in spans if span is not None))


def load_space(name: str) -> Space:
    """Read a search space by path or by the name of one that ships.

    Raises:
        UserError: names the file, the wrong key and the remedy.
    """
    path = find_file(name, "search_spaces")
    mapping = read_yaml(path)
    if isinstance(mapping, dict):
        mapping = dict(mapping)
        if "choices" in mapping:
            mapping["choices"] = expand(mapping["choices"], f"{path.name}: choices")
        if isinstance(mapping.get("layers"), dict):
            mapping["layers"] = {
                layer: expand(choices, f"{path.name}: layers.{layer}") for layer, choices in mapping["layers"].items()
            }
    return build(Space, mapping, path.name)


def _check_range(budget: float) -> None:
    if not 0 < budget <= 1:  # also false for nan
        raise UserError(f"budget must lie in (0, 1], a share of the all-full schedule's cost, not {budget:g}")


def _groups(space: Space, n_layers: int) -> list[tuple[int, ...]]:
    if space.pattern is not None:
        return [tuple(range(first, n_layers, space.pattern)) for first in range(space.pattern)]
    tied = {layer for group in space.tied for layer in group}
    free = [(layer,) for layer in range(n_layers) if layer not in tied]
    return sorted([*free, *(tuple(sorted(group)) for group in space.tied)])

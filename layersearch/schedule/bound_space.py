"""A search space for one model size: its variables, its schedules, their cost, and moves between them.

A space is the product of its variables' choices. If all sparse layers share one span, it is the union of one product
for each sparse span, the *subspaces*. Schedules without a sparse layer lie in all of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from layersearch.config.recipe import Recipe
from layersearch.errors import ConfigError, did_you_mean, located, require
from layersearch.schedule import presets
from layersearch.schedule.schedule import Schedule
from layersearch.schedule.space import Space, check_budget_range
from layersearch.schedule.span import FULL, Span
from layersearch.schedule.work import Work

Subspace = tuple[tuple[Span, ...], ...]  # The choices of each group of layers; any combination is a schedule


class BoundSpace:
    """A space for one model size: its variables, its schedules and their cost.

    Args:
        space: the spans that layers may have.
        n_layers: layers L.
        seq_len: tokens in a sequence; every span must fit.
        n_heads: query heads.
        bidirectional: whether the model is an encoder.
        work: counts the model's attention, in place of the three sizes before.

    Raises:
        ConfigError: a span is longer than the text or dilates too many heads, a named layer does not exist, or tied
            layers have no choice in common.

    Example:
        >>> from layersearch import BoundSpace, Space
        >>> space = Space(name="tiny", choices=("full", "window:32"))
        >>> bound = BoundSpace(space, n_layers=4, seq_len=256, n_heads=2)
        >>> bound.size, str(bound.cheapest())
        (16, 'window:32*4')
    """

    @classmethod
    def of(cls, space: Space, recipe: Recipe) -> BoundSpace:
        """Return the space for a recipe's model and sequence length."""
        return cls(space, n_layers=recipe.model.n_layers, work=Work.of(recipe))

    def __init__(
        self,
        space: Space,
        *,
        n_layers: int,
        seq_len: int = 0,
        n_heads: int = 0,
        bidirectional: bool = False,
        work: Work | None = None,
    ) -> None:
        work = work or Work(seq_len=seq_len, n_heads=n_heads, bidirectional=bidirectional)
        self.space, self.n_layers, self.work = space, n_layers, work
        self.seq_len, self.n_heads, self.bidirectional = work.seq_len, work.n_heads, work.bidirectional
        where = f"search space {space.name!r}"
        spans = {text: Span.parse(text) for text in space.choices}
        for text, span in spans.items():
            with located(f"{where}: choice {text}"):
                work.check(span)
        for layer in sorted({*space.layers, *itertools.chain.from_iterable(space.tied)}):
            known = layer < n_layers
            require(known, f"{where}: a model of {n_layers} has no layer {layer}; the last is {n_layers - 1}")
        fits = (space.pattern or 1) <= n_layers
        require(fits, f"{where}: pattern {space.pattern} is longer than the model's {n_layers} layers; shorten it")
        self.groups: tuple[tuple[int, ...], ...] = tuple(_groups(space, n_layers))
        """Layers that share one choice, each group sorted, the groups sorted by their first layer."""
        options = []
        for group in self.groups:
            allowed = [text for text in space.choices if all(text in space.layers.get(at, (text,)) for at in group)]
            require(allowed, f"{where}: layers {list(group)} share a choice but 'layers' leaves them none in common")
            options.append(tuple(spans[text] for text in allowed))
        self.options: Subspace = tuple(options)
        """The choices of each group, in the file's order."""
        self.subspaces: tuple[Subspace, ...] = (self.options,)
        """Products of choices whose union is the space: one, or one for each sparse span."""
        if space.one_sparse:
            self.subspaces = _subspaces(self.options)
            require(self.subspaces, f"{where}: one_sparse, but 'layers' leaves no sparse span that all layers may have")
        self._free = math.prod(sum(span.is_full for span in options) for options in self.options)
        """Schedules without a sparse layer, which lie in all subspaces."""
        digits = max(2, len(str(n_layers - 1)))
        self.names: tuple[str, ...] = tuple(f"layer_{group[0]:0{digits}d}" for group in self.groups)
        """The name of each group, after its first layer; `variables` has those of groups with a choice."""
        self._pairs = {span: self.pairs(span) for span in spans.values()}
        self._fixed = work.fixed
        self._full_pairs = n_layers * self.pairs(FULL) + self._fixed
        self._texts = [{str(span): span for span in allowed} for allowed in options]
        self._alike = len(self.groups) == n_layers and all(len(allowed) == len(spans) for allowed in options)
        """Whether any layer may have any span, whatever the others have."""
        self._places = [0] * n_layers  # the group of each layer
        for place, group in enumerate(self.groups):
            for layer in group:
                self._places[layer] = place

    @functools.cached_property
    def variables(self) -> dict[str, tuple[str, ...]]:
        """One categorical per group with a choice: its name (after its first layer) and the texts of its spans."""
        named = zip(self.names, self._texts, strict=True)
        return {name: tuple(texts) for name, texts in named if len(texts) > 1}

    @property
    def size(self) -> int:
        """The number of schedules, exactly."""
        return sum(_size(part) - self._free for part in self.subspaces) + self._free

    def decode(self, params: Mapping[str, str]) -> Schedule:
        """Return the schedule for values of `variables`; with ``one_sparse`` it may lie outside the space.

        Raises:
            ConfigError: a variable is missing or unknown, or its value is not among its choices.
        """
        variables = self.variables
        for name in params:
            require(name in variables, f"the search space has no variable {name!r}", name, variables)
        chosen = []
        for name, options, texts in zip(self.names, self.options, self._texts, strict=True):
            if len(texts) > 1 and params.get(name) not in texts:
                require(name in params, f"the variable {name!r} is missing; give one of {', '.join(texts)}")
                raise ConfigError(f"{name}: {params[name]!r} is no choice{did_you_mean(str(params[name]), texts)}")
            chosen.append(texts[params[name]] if len(texts) > 1 else options[0])
        return self.schedule(chosen)

    def encode(self, schedule: Schedule) -> dict[str, str] | None:
        """Return the values of `variables` for a schedule, or None if it lies outside the space."""
        if not self.holds(schedule):
            return None
        named = zip(self.names, self.groups, self._texts, strict=True)
        return {name: str(schedule.spans[group[0]]) for name, group, texts in named if len(texts) > 1}

    def holds(self, schedule: Schedule) -> bool:
        """Return whether a schedule lies in the space."""
        if len(schedule) != self.n_layers or not schedule.counts.keys() <= self._pairs.keys():
            return False
        if self.space.one_sparse and sum(not span.is_full for span in schedule.counts) > 1:
            return False
        spans = schedule.spans
        return self._alike or all(
            str(spans[group[0]]) in texts and all(spans[layer] == spans[group[0]] for layer in group)
            for group, texts in zip(self.groups, self._texts, strict=True)
        )

    def check(self, schedule: Schedule) -> None:
        """Raise ConfigError if the schedule lies outside the space."""
        alike, name = len(schedule) == self.n_layers, f"schedule '{schedule}'"
        require(alike, f"{name} has {len(schedule)} layers, the model {self.n_layers}; give one span per layer")
        require(self.holds(schedule), f"{name} lies outside search space {self.space.name!r}")

    def pairs(self, span: Span) -> int:
        """Return the visible pairs of one layer with any span, over all heads."""
        return self.work.pairs(span)

    def cost(self, schedule: Schedule) -> float:
        """Return the exact cost relative to the all-full schedule."""
        try:
            spans = sum(self._pairs[span] * times for span, times in schedule.counts.items())
            return (spans + self._fixed) / self._full_pairs
        except KeyError:  # all-full, in a space that does not hold it
            return (sum(map(self.pairs, schedule)) + self._fixed) / self._full_pairs

    def share(self, span: Span) -> float:
        """Return the cost of one layer with a span of the space, relative to the all-full schedule."""
        return self._pairs[span] / self._full_pairs

    def cheapest(self) -> Schedule:
        """Return the schedule of lowest cost; among equal choices, the first in the file."""
        return min(map(self._cheapest, self.subspaces), key=self.cost)

    def _cheapest(self, part: Subspace) -> Schedule:
        return self.schedule([min(options, key=self._pairs.__getitem__) for options in part])

    @property
    def cost_range(self) -> tuple[float, float]:
        """The lowest and the highest cost of a schedule in the space, relative to the all-full schedule."""
        highest = (self.schedule([max(options, key=self._pairs.__getitem__) for options in s]) for s in self.subspaces)
        return self.cost(self.cheapest()), max(map(self.cost, highest))

    def check_budget(self, budget: float) -> None:
        """Raise ConfigError if the budget lies outside (0, 1] or below the cheapest schedule."""
        check_budget_range(budget)
        lowest = self.cost_range[0]
        if budget < lowest:
            raise ConfigError(
                f"budget {budget:g} is below what search space {self.space.name!r} can reach: its cheapest schedule "
                f"({self.cheapest()}) costs {lowest:.4g}; raise the budget to {math.ceil(lowest * 1e4) / 1e4:g} "
                "or add a smaller span to choices"
            )

    def named_baselines(self, budget: float) -> dict[str, Schedule]:
        """Return the baselines that every search trains, by name.

        ``all_full`` is the reference of every cost, even where the space does not hold it. ``all_sparse`` has the
        cheapest sparse choice everywhere. ``bottom(l)``, ``top(l)``, ``middle(l)`` and ``interleaved(l)`` stand at the
        largest 1 <= l < n_layers that fits the budget and the space, or are absent. Each schedule stands here once;
        a key may hold several names, as in ``"middle(1) = interleaved(1)"``. The budget is the largest cost, relative
        to the all-full schedule.

        Raises:
            ConfigError: as `check_budget`.
        """
        self.check_budget(budget)
        sparse = [
            tuple(tuple(s for s in options if not s.is_full) or options for options in part) for part in self.subspaces
        ]
        all_sparse = min(map(self._cheapest, sparse), key=self.cost)
        all_full = presets.all_full(self.n_layers)
        named: dict[Schedule, list[str]] = {all_sparse: ["all_sparse"]}
        span = self.baseline_span
        if span is not None:
            for place in (presets.bottom, presets.top, presets.middle, presets.interleaved):
                for l in range(self.n_layers - 1, 0, -1):  # noqa: E741
                    schedule = place(self.n_layers, l, span)
                    if self.cost(schedule) <= budget and self.holds(schedule):
                        named.setdefault(schedule, []).append(f"{place.__name__}({l})")
                        break
        named.pop(all_full, None)  # a space that is full everywhere: nothing in it is sparse
        return {"all_full": all_full} | {" = ".join(names): schedule for schedule, names in named.items()}

    @property
    def baseline_span(self) -> Span | None:
        """The sparse span of the named baselines: the space's own, or its cheapest; None if it has no sparse span."""
        if self.space.baseline_span is not None:
            return next(span for span in self._pairs if str(span) == self.space.baseline_span)
        sparse = [span for span in self._pairs if not span.is_full]
        return min(sparse, key=self._pairs.__getitem__, default=None)

    def sample(self, rng: Random) -> Schedule:
        """Return a schedule drawn uniformly from the space."""
        if len(self.subspaces) == 1:
            return self.schedule([rng.choice(options) for options in self.subspaces[0]])
        own = [_size(part) - self._free for part in self.subspaces]
        number = rng.randrange(sum(own) + self._free)
        if number >= sum(own):
            return self.schedule([rng.choice([s for s in options if s.is_full]) for options in self.options])
        part = next(part for part, end in zip(self.subspaces, itertools.accumulate(own), strict=True) if number < end)
        while True:  # again where no layer is sparse, which was drawn for already
            schedule = self.schedule([rng.choice(options) for options in part])
            if schedule.n_full < self.n_layers:
                return schedule

    def repair(self, params: Mapping[str, str], budget: float, rng: Random) -> Schedule:
        """Return a schedule within space and budget that differs from a proposal in as few variables as possible.

        Among all smallest sets of variables, one is drawn. Those variables take their cheapest choice and then, in
        random order, the most expensive one that still fits. The same generator state gives the same schedule.

        Args:
            params: a proposal, as for `decode`; returned unchanged where it is within the budget.
            budget: largest cost, relative to the all-full schedule.
            rng: decides between equally near schedules.

        Raises:
            ConfigError: as `decode` and `check_budget`.
        """
        self.check_budget(budget)
        proposal = self._chosen(self.decode(params))

        def nearest(span: Span, options: Sequence[Span]) -> Span:
            """Return the span, or the sparse one that takes its place in another subspace."""
            return span if span in options else min(options, key=lambda other: (other.is_full, self._pairs[other]))

        repaired = [
            self._repair(list(map(nearest, proposal, part)), part, budget, rng)
            for part in self.subspaces
            if self.cost(self._cheapest(part)) <= budget
        ]
        if len(repaired) == 1:
            return repaired[0]
        changed = [sum(map(operator.ne, self._chosen(schedule), proposal)) for schedule in repaired]
        return rng.choice([s for s, far in zip(repaired, changed, strict=True) if far == min(changed)])

    def _repair(self, chosen: list[Span], part: Subspace, budget: float, rng: Random) -> Schedule:
        # The ratio itself is compared, so that no rounding can put a repaired schedule over the budget.
        def fits(pairs: int) -> bool:
            return (pairs + self._fixed) / self._full_pairs <= budget

        pairs, widths = self._pairs, [len(group) for group in self.groups]
        least = [min(options, key=pairs.__getitem__) for options in part]
        used = sum(pairs[span] * width for span, width in zip(chosen, widths, strict=True))
        saving = [(pairs[s] - pairs[low]) * width for s, low, width in zip(chosen, least, widths, strict=True)]
        if fits(used):
            return self.schedule(chosen)
        ordered = sorted(saving, reverse=True)
        number = next(k for k in range(1, len(ordered) + 1) if fits(used - sum(ordered[:k])))
        changed: list[int] = []
        for left in range(number - 1, -1, -1):
            # A variable may be drawn if the `left` best of the others can still bring the cost down to the budget.
            open_ = [at for at in range(len(saving)) if at not in changed]
            best = {at: sorted((saving[o] for o in open_ if o != at), reverse=True)[:left] for at in open_}
            changed.append(rng.choice([at for at in open_ if fits(used - saving[at] - sum(best[at]))]))
            used -= saving[changed[-1]]
        for at in changed:
            chosen[at] = least[at]
        rng.shuffle(changed)
        for at in changed:
            low = pairs[least[at]]
            fitting = [span for span in part[at] if fits(used + (pairs[span] - low) * widths[at])]
            most = max(pairs[span] for span in fitting)
            chosen[at] = rng.choice([span for span in fitting if pairs[span] == most])
            used += (most - low) * widths[at]
        return self.schedule(chosen)

    def schedules(self) -> Iterator[Schedule]:
        """Yield every schedule; for small spaces only."""
        for number, part in enumerate(self.subspaces):
            for schedule in map(self.schedule, itertools.product(*part)):
                if not number or schedule.n_full < self.n_layers:
                    yield schedule

    def neighbors(self, schedule: Schedule) -> Iterator[Schedule]:
        """Yield every schedule that differs in one variable or, with ``one_sparse``, in the span of all sparse layers.

        Raises:
            ConfigError: the schedule lies outside the space.
        """
        self.check(schedule)
        chosen = self._chosen(schedule)
        for at, options in enumerate(self.options):
            for span in self._others(chosen, at, options):
                yield self.schedule([*chosen[:at], span, *chosen[at + 1 :]])
        yield from self._resized(chosen)

    def neighbor(self, schedule: Schedule, rng: Random) -> Schedule:
        """Return one of `neighbors`: first the variable to change is drawn, then its span, both uniformly."""
        chosen = self._chosen(schedule)
        others = [self._others(chosen, at, options) for at, options in enumerate(self.options)]
        resized = list(self._resized(chosen))
        at = rng.choice([at for at, found in enumerate([*others, resized]) if found])
        if at == len(others):
            return rng.choice(resized)
        chosen[at] = rng.choice(others[at])
        return self.schedule(chosen)

    def _others(self, chosen: Sequence[Span], at: int, options: Sequence[Span]) -> list[Span]:
        """Return the other spans that a group may have while the other groups stay."""
        others = [span for span in options if span != chosen[at]]
        if self.space.one_sparse:
            used = {span for group, span in enumerate(chosen) if group != at and not span.is_full}
            others = [span for span in others if span.is_full or used <= {span}]
        return others

    def _resized(self, chosen: Sequence[Span]) -> Iterator[Schedule]:
        """Yield the schedules in which all sparse layers, in two groups or more, have another span."""
        sparse = [at for at, span in enumerate(chosen) if not span.is_full]
        if not self.space.one_sparse or len(sparse) < 2:
            return
        for part in self.subspaces:
            others = [[span for span in part[at] if not span.is_full] for at in sparse]
            if all(others) and others[0] != [chosen[sparse[0]]]:
                new = dict(zip(sparse, (spans[0] for spans in others), strict=True))
                yield self.schedule([new.get(at, span) for at, span in enumerate(chosen)])

    def schedule(self, chosen: Sequence[Span]) -> Schedule:
        """Return the schedule with these spans, one for each of `groups`."""
        return Schedule(tuple([chosen[place] for place in self._places]))

    def _chosen(self, schedule: Schedule) -> list[Span]:
        """Return the span of each group."""
        return [schedule[group[0]] for group in self.groups]


def _subspaces(options: Subspace) -> tuple[Subspace, ...]:
    """Return the product of choices for each sparse span, without those in which a group has no choice."""
    sparse = dict.fromkeys(span for group in options for span in group if not span.is_full)
    parts = [tuple(tuple(s for s in group if s.is_full or s == span) for group in options) for span in sparse]
    return tuple(part for part in parts if all(part)) if parts else (options,)


def _size(part: Subspace) -> int:
    return math.prod(len(options) for options in part)


def _groups(space: Space, n_layers: int) -> list[tuple[int, ...]]:
    if space.pattern is not None:
        return [tuple(range(first, n_layers, space.pattern)) for first in range(space.pattern)]
    tied = {layer for group in space.tied for layer in group}
    free = [(layer,) for layer in range(n_layers) if layer not in tied]
    return sorted([*free, *(tuple(sorted(group)) for group in space.tied)])

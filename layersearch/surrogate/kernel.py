"""The surrogate's kernel: how alike the losses of two schedules are before any is trained.

Additive plus pairwise in (layer, span), or with interactions of any order; see `layersearch.surrogate.gp`.
Shape legend: V variables (groups of layers that share a choice), S distinct spans of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from layersearch.errors import ConfigError
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

# Log of each hyperparameter: mean and standard deviation of its normal prior. Losses are in units of their spread.
PRIOR: dict[str, tuple[float, float]] = {
    "single": (-0.5, 1.0),  # standard deviation of the effects of single layers
    "pair": (-1.5, 1.0),  # of effects of pairs, independent of each other
    "shared_pair": (-1.0, 1.0),  # of effects of pairs, similar for similar layers
    "rest": (-2.5, 1.0),
    "noise": (-2.5, 1.5),
    "seed": (-2.5, 1.5),
    "reach": (-0.5, 1.0),  # length scale over layers, as a share of the depth
    "width": (0.0, 1.0),  # length scale over the logarithmic range of spans
    "early": (0.0, 1.0),  # length scale over the share of training
}
SMOOTH: dict[str, tuple[float, float]] = {
    "single": (-1.5, 1.0),
    "bend": (0.0, 0.7),  # standard deviation of interactions of any order
    "bent": (0.0, 1.0),  # their length scale, in units of the spread of schedules
} | {name: PRIOR[name] for name in ("rest", "noise", "seed", "reach", "width", "early")}
LEVEL: dict[str, tuple[float, float]] = {"level": (0.0, 1.0)}  # standard deviation of what depends on the cost alone
_LEVEL_LENGTH = 0.2  # its length scale, as a share of the logarithmic range of costs


class Kernel:
    """The prior covariance of the layers' effects on the loss, for the schedules of a space.

    Args:
        space: the bound space.
        pairwise: additive plus pairwise. Otherwise a squared exponential of the distance between schedules replaces the
            pairs.
        by_cost: not pairwise only: add a smooth function of the logarithm of the cost.
    """

    def __init__(self, space: BoundSpace, *, pairwise: bool, by_cost: bool) -> None:
        assert not (pairwise and by_cost)
        self._space, self.pairwise, self.by_cost = space, pairwise, by_cost
        self.prior = (PRIOR if pairwise else SMOOTH) | (LEVEL if by_cost else {})
        spans = list(dict.fromkeys(span for options in space.options for span in options))
        self._index = {span: at for at, span in enumerate(spans)}
        pairs = np.log([space.pairs(span) for span in spans])
        spread = max(float(np.ptp(pairs)), 1e-12)
        other = [[float(a.kind != b.kind and not (a.is_full or b.is_full)) for b in spans] for a in spans]
        decay = np.array([span.decay for span in spans])
        pool = np.array([float(span.pool > 1) for span in spans])
        far = np.abs(pairs[:, None] - pairs[None, :]) / spread + np.array(other)
        # Blocks of equal size that begin elsewhere see other tokens at the same cost.
        begin = np.array([span.offset / (span.size or 1) for span in spans])
        far = far + np.abs(begin[:, None] - begin)
        # Keys that carry news from everywhere, at a cost that does not show it.
        for carried in ([span.global_first or span.global_marked for span in spans], [s.summary for s in spans]):
            some = np.array(carried) > 0
            far = far + (some[:, None] != some)
        split = np.array([span.far_heads or 0 for span in spans])
        far = far + (split[:, None] != split)
        self._span_distance: Array = far + np.abs(decay[:, None] - decay) + np.abs(pool[:, None] - pool)
        places = np.array([np.mean(group) for group in space.groups])
        self._place_distance: Array = np.abs(places[:, None] - places[None, :]) / max(1, space.n_layers)
        self._pairs: Array = np.array([len(group) * np.exp(pairs) for group in space.groups])  # (V, S)
        costs = [[self._pairs[at, self._index[span]] for span in options] for at, options in enumerate(space.options)]
        self._range = max(float(np.log(sum(map(max, costs)) / sum(map(min, costs)))), 1e-12)
        # What the kernel of observed schedules is made of, by the length scales: other hyperparameters only weigh it.
        self._parts: dict[tuple[float, float], tuple[Array, Array, Array]] = {}
        self._observed: Codes = np.empty((0, len(space.groups)), dtype=np.int64)
        self._coded: dict[Schedule, Codes] = {}  # the same schedules are asked for again and again

    @property
    def n_spans(self) -> int:
        """Number of distinct spans of the space."""
        return len(self._index)

    def observe(self, codes: Codes) -> None:
        """Keep what the kernel of these codes with themselves is made of, by the two length scales."""
        self._observed, self._parts = codes, {}

    def codes(self, schedules: Sequence[Schedule]) -> Codes:
        """Return the `code` of each variable's span, (M, V).

        Raises:
            ConfigError: if a schedule lies outside the space.
        """
        firsts, known = [group[0] for group in self._space.groups], self._coded
        for schedule in schedules:
            if schedule in known:
                continue
            try:
                spans = schedule.spans
                known[schedule] = np.array([self._index[spans[at]] for at in firsts], dtype=np.int64)
            except (KeyError, IndexError):
                raise ConfigError(f"{schedule} lies outside search space {self._space.space.name!r}") from None
        rows = [known[schedule] for schedule in schedules]
        return np.array(rows, dtype=np.int64).reshape(len(schedules), len(firsts))

    def code(self, span: Span) -> int:
        """Return the number that stands for a span of the space."""
        return self._index[span]

    def _span_vectors(self, scale: dict[str, float]) -> Array:
        """Return a vector for each span, whose inner products are their covariance, (S, S)."""
        spans = np.exp(-((self._span_distance / scale["width"]) ** 2))
        # Centered: a single layer's effect is its deviation from the average over spans.
        spans = spans - spans.mean(0) - spans.mean(1)[:, None] + spans.mean()
        spans /= max(float(np.diag(spans).mean()), 1e-12)
        values, vectors = linalg.eigh(spans)
        return vectors * np.sqrt(np.maximum(values, 0.0))

    def _features(self, codes: Codes, scale: dict[str, float], vectors: Array | None = None) -> tuple[Array, Array]:
        """Return each layer's span as a vector, and its kernel average over all layers, (rows, V, S) each.

        ``vectors`` are the `_span_vectors`, if they are known.
        """
        layers = (self._span_vectors(scale) if vectors is None else vectors)[codes]
        places = np.exp(-self._place_distance / scale["reach"])
        return layers, np.einsum("vw,nvs->nws", places, layers, optimize=True) / codes.shape[1]

    def between(self, left: Codes, right: Codes, log: Mapping[str, float]) -> Array:
        """Return the prior covariance of the layers' effects, (rows of left, rows of right)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        if left is not right or left is not self._observed:
            return self._sum(scale, *self._kernels(left, right, scale))
        key = scale["width"], scale["reach"]
        if key not in self._parts:
            if len(self._parts) == 4:  # gradients are differences: most change neither of the two
                self._parts.pop(next(iter(self._parts)))
            self._parts[key] = self._kernels(left, right, scale)
        return self._sum(scale, *self._parts[key])

    def _kernels(self, left: Codes, right: Codes, scale: dict[str, float]) -> tuple[Array, Array, Array]:
        """Return the kernel of single layers, that of pairs or else the squared distance, and that of costs."""
        level = np.empty(0)
        if self.by_cost:
            groups = np.arange(left.shape[1])
            a, b = (np.log(self._pairs[groups, codes].sum(axis=1)) / self._range for codes in (left, right))
            level = np.exp(-(((a[:, None] - b[None, :]) / _LEVEL_LENGTH) ** 2) / 2)
        vectors = self._span_vectors(scale)
        a, mixed_a = self._features(left, scale, vectors)
        b, mixed_b = (a, mixed_a) if left is right else self._features(right, scale, vectors)
        single: Array = mixed_a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        if not self.pairwise:
            norms = [np.einsum("nvs,nvs->n", x, y) for x, y in ((mixed_a, a), (mixed_b, b))]
            return single, np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * single, 0.0), level
        count = left.shape[1]
        plain = a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        squares = ((vectors @ vectors.T) ** 2)[left].reshape(len(left), -1)
        own = squares @ np.eye(len(vectors))[right].reshape(len(right), -1).T  # each layer with itself is no pair
        return single, (plain**2 - own) / max(1, count * (count - 1)), level

    def diagonal(self, codes: Codes, log: Mapping[str, float]) -> Array:
        """Return the diagonal of `between`, (rows,)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        layers, mixed = self._features(codes, scale)
        single, each, count = (layers * mixed).sum(axis=(1, 2)), (layers**2).sum(axis=2), codes.shape[1]
        pair = (each.sum(1) ** 2 - (each**2).sum(1)) / max(1, count * (count - 1))
        return self._sum(scale, single, pair if self.pairwise else np.zeros(len(codes)), np.ones(len(codes)))

    def _sum(self, scale: dict[str, float], single: Array, other: Array, level: Array) -> Array:
        """Return the sum of the kernel's parts, which are those of `_kernels`."""
        result: Array = 1.0 + scale["single"] ** 2 * single
        if self.by_cost:
            result += scale["level"] ** 2 * level
        if self.pairwise:
            return result + scale["pair"] ** 2 * other + scale["shared_pair"] ** 2 * single**2
        return result + scale["bend"] ** 2 * np.exp(-other / (2 * scale["bent"] ** 2))

    def effects(self, each: Array, log: Mapping[str, float]) -> tuple[float, Array, Array]:
        """Return the standardized mean's constant, the effects of each variable's spans, and those of their pairs.

        The kernel of pairs is a polynomial of inner products, so the mean is one of the spans chosen: (V * S,) single
        effects and (V * S, V * S) of pairs. ``rest`` is not in it. ``each`` is the weight of each observed schedule.
        """
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        vectors, count = self._span_vectors(scale), self._observed.shape[1]
        layers, mixed = ((part @ vectors.T).reshape(len(each), -1) for part in self._features(self._observed, scale))
        squares = ((vectors @ vectors.T) ** 2)[self._observed].reshape(len(each), -1)
        weight = scale["pair"] ** 2 / max(1, count * (count - 1))
        single: Array = scale["single"] ** 2 * (each @ mixed) - weight * (each @ squares)
        pair: Array = weight * (layers.T * each) @ layers + scale["shared_pair"] ** 2 * (mixed.T * each) @ mixed
        return float(each.sum()), single, pair

"""The surrogate: a Gaussian process that predicts a schedule's loss from trained schedules.

It is additive plus pairwise in (layer, span) (docs/methods/surrogate.md; 1112.4394 for such kernels):

    loss = constant + sum_v u_v(x_v) + sum_{v<w} p_vw(x_v, x_w) + rest(x) + seed effect + noise

Hyperparameters maximize their posterior density (Rasmussen and Williams, "Gaussian processes for machine learning",
section 5.4). No library has this kernel with a seed effect and early losses.

Shape legend: N losses, M schedules to predict, V variables (groups of layers that share a choice), S distinct spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, special

from layersearch.errors import ConfigError, LayersearchError
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

MIN_SCHEDULES = 4  # Smallest number of distinct schedules to fit
MIN_SPREAD = 0.05  # Lower bound of the losses' spread by their mean: a few equal trials do not show all are equal
# Log of each hyperparameter: mean and standard deviation of its normal prior. Losses are in units of their spread.
_PRIOR: dict[str, tuple[float, float]] = {
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
_SMOOTH: dict[str, tuple[float, float]] = {
    "single": (-1.5, 1.0),
    "bend": (0.0, 0.7),  # standard deviation of interactions of any order
    "bent": (0.0, 1.0),  # their length scale, in units of the spread of schedules
} | {name: _PRIOR[name] for name in ("rest", "noise", "seed", "reach", "width", "early")}
_LEVEL: dict[str, tuple[float, float]] = {"level": (0.0, 1.0)}  # standard deviation of what depends on the cost alone
_LEVEL_LENGTH = 0.2  # its length scale, as a share of the logarithmic range of costs
_JITTER = 1e-9
_AT_ONCE = 512  # Schedules predicted at once, which bounds the memory
_NONE = (np.empty(0), np.empty(0))
_MOST_FITTED = 128  # Schedules whose losses choose the hyperparameters, in about 160 evaluations
_FITTING = {"maxiter": 40, "ftol": 1e-5}


class Surrogate:
    """Predicts the mean loss over seeds of any schedule of a space.

    Args:
        space: the bound space; the surrogate covers its schedules only.
        pairwise: additive plus pairwise, as above. Otherwise interactions of any order: a squared exponential of the
            distance between schedules replaces the pairs. It needs fewer trials if layers depend on each other.
        by_cost: not pairwise only: add a smooth function of the logarithm of the cost. Without it, a schedule unlike
            all trained ones is predicted at their mean, so that a few with full layers make all cheap ones look good.
    """

    def __init__(self, space: BoundSpace, *, pairwise: bool = True, by_cost: bool = False) -> None:
        assert not (pairwise and by_cost)
        self._space, self._pairwise, self._by_cost = space, pairwise, by_cost
        self._prior = (_PRIOR if pairwise else _SMOOTH) | (_LEVEL if by_cost else {})
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
        self._distinct: Codes = np.empty((0, len(space.groups)), dtype=np.int64)
        self._coded: dict[Schedule, Codes] = {}  # the same schedules are asked for again and again
        self._fitted: dict[str, float] = {}
        self._tables: tuple[float, Array, Array] | None = None

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

    def fit(
        self,
        schedules: Sequence[Schedule],
        losses: Sequence[float],
        seeds: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
        like: Surrogate | None = None,
    ) -> Surrogate:
        """Fit the hyperparameters and condition on losses; return itself.

        Args:
            schedules: one per loss, N.
            losses: validation losses, nats.
            seeds: seed of each loss, to separate the seed's effect from noise; None: all the same.
            shares: share of the training at each loss; None: all at the end. A trial may have several losses. At least
                one trial must have a loss both at each share and at the end.
            like: copy the hyperparameters of this surrogate, which is faster.

        Raises:
            LayersearchError: for fewer than `MIN_SCHEDULES` distinct schedules with a loss at the end.
        """
        share = np.asarray([1.0] * len(losses) if shares is None else shares, dtype=np.float64)
        seed = np.asarray([0] * len(losses) if seeds is None else seeds)
        loss = np.asarray(losses, dtype=np.float64)
        whole = {(s, at) for s, at, part in zip(schedules, seed, share, strict=True) if part == 1.0}
        distinct = len({s for s, _ in whole})
        if distinct < MIN_SCHEDULES:
            raise LayersearchError(f"{distinct} schedules are too few to learn from: train at least {MIN_SCHEDULES}")
        self._x, self._share = self.codes(schedules), share
        # Stopped trials were the worse ones, so only complete trials standardize the losses of a share.
        ended = np.array([(s, at) in whole for s, at in zip(schedules, seed, strict=True)])
        self._scale = {}
        for part in np.unique(share):
            some = loss[ended & (share == part)]
            assert len(some), "a share of the training that no complete trial has"
            spread = max(float(some.std()), MIN_SPREAD * abs(float(some.mean())), 1e-9)
            self._scale[float(part)] = (float(some.mean()), spread)
        center, unit = np.array([self._scale[part] for part in share]).T
        self._y = (loss - center) / unit
        self._distinct, self._of = np.unique(self._x, axis=0, return_inverse=True)
        self._parts = {}
        same, same_seed = self._of[:, None] == self._of[None, :], seed[:, None] == seed[None, :]
        self._same: Array = same.astype(np.float64)
        self._same_seed: Array | None = None if np.all(same_seed) else same_seed.astype(np.float64)
        self._apart: Array = np.abs(share[:, None] - share[None, :])
        if like is None and len(self._distinct) > _MOST_FITTED:
            like = self._like_some(schedules, losses, seed, share)
        if like is not None:
            self._condition(like._fitted)
            return self
        unknown = {"seed"} if self._same_seed is None else set()
        unknown |= {"early"} if len(self._scale) == 1 else set()
        names = [name for name in self._prior if name not in unknown]
        start, search = [self._prior[name][0] for name in names], {"method": "L-BFGS-B", "options": _FITTING}
        bounds = [(-7.0, 4.0)] * len(names)
        found = optimize.minimize(self._objective, start, args=(names,), bounds=bounds, **search)
        fixed = {name: middle for name, (middle, _) in self._prior.items()} | {"seed": -np.inf}
        self._condition(fixed | dict(zip(names, found.x, strict=True)))
        return self

    def _like_some(
        self, schedules: Sequence[Schedule], losses: Sequence[float], seed: Array, share: Array
    ) -> Surrogate:
        """Return a surrogate fitted to all losses of some schedules only, evenly spread."""
        kept = np.linspace(0, len(self._distinct) - 1, _MOST_FITTED).round()
        rows: list[int] = np.flatnonzero(np.isin(self._of, kept)).tolist()
        some = Surrogate(self._space, pairwise=self._pairwise, by_cost=self._by_cost)
        return some.fit(
            [schedules[row] for row in rows], [losses[row] for row in rows], seed[rows].tolist(), share[rows].tolist()
        )

    @property
    def noise(self) -> float:
        """Standard deviation of one trial's loss around its schedule's mean, without the common seed effect, nats."""
        return self._scale[1.0][1] * float(np.exp(self._fitted["noise"]))

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

    def _kernel(self, left: Codes, right: Codes, log: dict[str, float]) -> Array:
        """Return the prior covariance of the layers' effects, (rows of left, rows of right)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        if left is not right or left is not self._distinct:
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
        if self._by_cost:
            groups = np.arange(left.shape[1])
            a, b = (np.log(self._pairs[groups, codes].sum(axis=1)) / self._range for codes in (left, right))
            level = np.exp(-(((a[:, None] - b[None, :]) / _LEVEL_LENGTH) ** 2) / 2)
        vectors = self._span_vectors(scale)
        a, mixed_a = self._features(left, scale, vectors)
        b, mixed_b = (a, mixed_a) if left is right else self._features(right, scale, vectors)
        single: Array = mixed_a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        if not self._pairwise:
            norms = [np.einsum("nvs,nvs->n", x, y) for x, y in ((mixed_a, a), (mixed_b, b))]
            return single, np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * single, 0.0), level
        count = left.shape[1]
        plain = a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        squares = ((vectors @ vectors.T) ** 2)[left].reshape(len(left), -1)
        own = squares @ np.eye(len(vectors))[right].reshape(len(right), -1).T  # each layer with itself is no pair
        return single, (plain**2 - own) / max(1, count * (count - 1)), level

    def _diagonal(self, codes: Codes, log: dict[str, float]) -> Array:
        """Return the diagonal of `_kernel`, (rows,)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        layers, mixed = self._features(codes, scale)
        single, each, count = (layers * mixed).sum(axis=(1, 2)), (layers**2).sum(axis=2), codes.shape[1]
        pair = (each.sum(1) ** 2 - (each**2).sum(1)) / max(1, count * (count - 1))
        return self._sum(scale, single, pair if self._pairwise else np.zeros(len(codes)), np.ones(len(codes)))

    def _sum(self, scale: dict[str, float], single: Array, other: Array, level: Array) -> Array:
        """Return the sum of the kernel's parts, which are those of `_kernels`."""
        result: Array = 1.0 + scale["single"] ** 2 * single
        if self._by_cost:
            result += scale["level"] ** 2 * level
        if self._pairwise:
            return result + scale["pair"] ** 2 * other + scale["shared_pair"] ** 2 * single**2
        return result + scale["bend"] ** 2 * np.exp(-other / (2 * scale["bent"] ** 2))

    def _covariance(self, log: dict[str, float]) -> Array:
        """Return the prior covariance of the observed losses, (N, N)."""
        covariance: Array = self._kernel(self._distinct, self._distinct, log)[np.ix_(self._of, self._of)]
        covariance += np.exp(2 * log["rest"]) * self._same
        noise = np.exp(2 * log["noise"]) * self._same
        if self._same_seed is not None:
            covariance += np.exp(2 * log.get("seed", -np.inf)) * self._same_seed
            noise *= self._same_seed
        covariance += noise
        covariance *= self._correlation(self._apart, log)
        covariance[np.diag_indices_from(covariance)] += _JITTER
        return covariance

    @staticmethod
    def _correlation(apart: Array, log: dict[str, float]) -> Array:
        """Return the correlation, in [0, 1], of losses at shares of the training that are so far apart."""
        return np.exp(-apart / np.exp(log.get("early", 0.0)))

    def _objective(self, values: Array, names: list[str]) -> float:
        """Return the negative log density of losses and hyperparameters, up to a constant."""
        log = dict(zip(names, values, strict=True))
        try:
            factor = linalg.cholesky(self._covariance(log), lower=True)
        except linalg.LinAlgError:
            return 1e12
        white = linalg.solve_triangular(factor, self._y, lower=True)
        penalty = sum(((log[name] - self._prior[name][0]) / self._prior[name][1]) ** 2 for name in names)
        return float(0.5 * white @ white + np.log(np.diag(factor)).sum() + 0.5 * penalty)

    def _condition(self, log: dict[str, float]) -> None:
        self._fitted = log
        self._inverse = _inverse(self._covariance(log))
        self._weights: Array = self._inverse @ self._y
        # Correlation of each observed loss with one at the end of the same trial.
        self._ends: Array = self._correlation(1.0 - self._share, log)
        each = np.bincount(self._of, weights=self._weights * self._ends, minlength=len(self._distinct))
        self._each: Array = each.astype(np.float64)
        self._known = {code.tobytes(): at for at, code in enumerate(self._distinct)}
        self._tables = None
        self._conformal = max(1.0, self._conformal_factor())

    def leave_one_out(self) -> tuple[Array, Array, Array]:
        """Return the leave-one-out predictions of the schedules that were trained to the end.

        Closed form, with all losses of a schedule left out at once (Rasmussen and Williams, section 5.4.2). The
        hyperparameters are those fitted to all losses.

        Returns:
            Predicted mean of the last losses, their real mean, and the prediction's standard deviation with seed noise
            and without calibration; nats, one entry per schedule, sorted by code.
        """
        found = []
        center, unit = self._scale[1.0]
        for at in range(self._of.max() + 1):
            held = np.flatnonzero(self._of == at)
            end = self._share[held] == 1.0
            if not end.any():
                continue
            block = linalg.inv(self._inverse[np.ix_(held, held)])
            missed = float((block @ self._weights[held])[end].mean())
            seen = float(self._y[held][end].mean())
            std = float(block[np.ix_(end, end)].mean()) ** 0.5
            found.append((center + unit * (seen - missed), center + unit * seen, unit * std))
        predicted, real, stds = np.array(found).T
        return predicted, real, stds

    def _conformal_factor(self) -> float:
        """Return the factor on standard deviations that covers 95% of the left-out schedules.

        The rank is that of split conformal prediction (Vovk, Gammerman, Shafer, "Algorithmic learning in a random
        world", 2005); with too few schedules it is the largest.
        """
        predicted, observed, std = self.leave_one_out()
        errors = np.sort(np.abs(predicted - observed) / std)
        rank = min(len(errors), int(np.ceil((len(errors) + 1) * 0.95)))
        return float(errors[rank - 1] / special.ndtri(0.975))

    def predict(self, schedules: Sequence[Schedule], *, calibrated: bool = True) -> tuple[Array, Array]:
        """Return the mean loss over seeds and its standard deviation, nats, (M,) each.

        The standard deviation is that of the mean over seeds, without the noise of one trial. ``calibrated`` multiplies
        it by the conformal factor of the leave-one-out errors.

        Raises:
            ConfigError: if a schedule lies outside the space.
        """
        codes = self.codes(schedules)
        found = [self._predicted(codes[at : at + _AT_ONCE]) for at in range(0, len(codes), _AT_ONCE)]
        mean, variance = (np.concatenate([np.empty(0), *part]) for part in zip(*found, strict=True)) if found else _NONE
        center, unit = self._scale[1.0]
        factor = self._conformal if calibrated else 1.0
        return center + unit * mean, unit * factor * np.sqrt(np.maximum(variance, _JITTER))

    def _predicted(self, codes: Codes) -> tuple[Array, Array]:
        """Return the standardized mean and its variance, (M,) each."""
        log, rest = self._fitted, float(np.exp(2 * self._fitted["rest"]))
        cross = self._kernel(codes, self._distinct, log)
        for row, at in self._matches(codes):
            cross[row, at] += rest
        mean: Array = cross @ self._each
        whole = cross[:, self._of] * self._ends
        return mean, self._diagonal(codes, log) + rest - ((whole @ self._inverse) * whole).sum(axis=1)

    def _matches(self, codes: Codes) -> list[tuple[int, int]]:
        """Return (row of the codes, index of the observed schedule) of each code that was observed."""
        held, width = codes.tobytes(), codes.shape[1] * codes.itemsize
        found = ((row, self._known.get(held[row * width : (row + 1) * width])) for row in range(len(codes)))
        return [(row, at) for row, at in found if at is not None]

    def code(self, span: Span) -> int:
        """Return the number that stands for a span of the space in `mean`."""
        return self._index[span]

    def mean(self, codes: Codes) -> Array:
        """Return the means of `predict`, (M,), for the `code` of each variable's span, (M, V).

        It is far faster for many schedules: single layers and pairs have one table of effects, whatever the number of
        observed losses.
        """
        if not self._pairwise:
            parts = [self._predicted(codes[at : at + _AT_ONCE])[0] for at in range(0, len(codes), _AT_ONCE)]
            mean = np.concatenate([np.empty(0), *parts])
        else:
            if self._tables is None:
                self._tables = self._effects()
            constant, single, pair = self._tables
            chosen = np.eye(len(self._index))[codes].reshape(len(codes), -1)
            mean = constant + chosen @ single + ((chosen @ pair) * chosen).sum(axis=1)
            for row, at in self._matches(codes):
                mean[row] += float(np.exp(2 * self._fitted["rest"])) * self._each[at]
        center, unit = self._scale[1.0]
        result: Array = center + unit * mean
        return result

    def changed_means(self, codes: Codes) -> Array:
        """Return the `mean` of one schedule, (V,) codes, with each variable at each span of the space, (V, S).

        Only for single layers and pairs, whose means are a sum of few terms: no other schedule is predicted anew.
        """
        assert self._pairwise
        if self._tables is None:
            self._tables = self._effects()
        constant, single, pair = self._tables
        variables, spans = len(codes), len(self._index)
        chosen, each = np.eye(spans)[codes].reshape(-1), np.arange(variables)
        own = pair.reshape(variables, spans, variables, spans)[each, :, each]  # a variable's spans among each other
        slopes = (single + pair @ chosen + chosen @ pair).reshape(variables, spans)
        mean: Array = slopes + np.einsum("vss->vs", own) - own[each, :, codes] - own[each, codes]
        mean += constant + chosen @ single + chosen @ pair @ chosen
        mean += (own[each, codes, codes] - slopes[each, codes])[:, None]
        changed = np.repeat(codes[None], mean.size, axis=0)
        changed[np.arange(mean.size), np.repeat(each, spans)] = np.tile(np.arange(spans), variables)
        for row, at in self._matches(changed):
            mean.reshape(-1)[row] += float(np.exp(2 * self._fitted["rest"])) * self._each[at]
        center, unit = self._scale[1.0]
        result: Array = center + unit * mean
        return result

    def _effects(self) -> tuple[float, Array, Array]:
        """Return the standardized mean's constant, the effects of each variable's spans, and those of their pairs.

        The kernel of pairs is a polynomial of inner products, so the mean is one of the spans chosen: (V * S,) single
        effects and (V * S, V * S) of pairs. ``rest`` is not in it.
        """
        scale = {name: float(np.exp(value)) for name, value in self._fitted.items()}
        vectors, count, each = self._span_vectors(scale), self._distinct.shape[1], self._each
        layers, mixed = ((part @ vectors.T).reshape(len(each), -1) for part in self._features(self._distinct, scale))
        squares = ((vectors @ vectors.T) ** 2)[self._distinct].reshape(len(each), -1)
        weight = scale["pair"] ** 2 / max(1, count * (count - 1))
        single: Array = scale["single"] ** 2 * (each @ mixed) - weight * (each @ squares)
        pair: Array = weight * (layers.T * each) @ layers + scale["shared_pair"] ** 2 * (mixed.T * each) @ mixed
        return float(each.sum()), single, pair


def _inverse(covariance: Array) -> Array:
    """Return the inverse of a covariance."""
    factor, problem = linalg.lapack.dpotrf(covariance, lower=1)
    inverse, failed = (factor, problem) if problem else linalg.lapack.dpotri(factor, lower=1)
    if failed:  # hyperparameters of other losses may leave it without full rank
        inverse = linalg.inv(covariance)
        return (inverse + inverse.T) / 2
    below = np.tril(inverse, -1)
    return np.diag(np.diag(inverse)) + below + below.T

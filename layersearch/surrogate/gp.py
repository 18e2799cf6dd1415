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
from scipy import linalg, optimize, special

from layersearch.errors import LayersearchError
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.kernel import Array, Codes, Kernel

MIN_SCHEDULES = 4  # Smallest number of distinct schedules to fit
MIN_SPREAD = 0.05  # Lower bound of the losses' spread by their mean: a few equal trials do not show all are equal
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
        self._space = space
        self._kernel = Kernel(space, pairwise=pairwise, by_cost=by_cost)
        self._distinct: Codes = np.empty((0, len(space.groups)), dtype=np.int64)
        self._fitted: dict[str, float] = {}
        self._tables: tuple[float, Array, Array] | None = None

    def codes(self, schedules: Sequence[Schedule]) -> Codes:
        """Return the `code` of each variable's span, (M, V).

        Raises:
            ConfigError: if a schedule lies outside the space.
        """
        return self._kernel.codes(schedules)

    def code(self, span: Span) -> int:
        """Return the number that stands for a span of the space in `mean`."""
        return self._kernel.code(span)

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
        self._kernel.observe(self._distinct)
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
        names = [name for name in self._kernel.prior if name not in unknown]
        start, search = [self._kernel.prior[name][0] for name in names], {"method": "L-BFGS-B", "options": _FITTING}
        bounds = [(-7.0, 4.0)] * len(names)
        found = optimize.minimize(self._objective, start, args=(names,), bounds=bounds, **search)
        fixed = {name: middle for name, (middle, _) in self._kernel.prior.items()} | {"seed": -np.inf}
        self._condition(fixed | dict(zip(names, found.x, strict=True)))
        return self

    def _like_some(
        self, schedules: Sequence[Schedule], losses: Sequence[float], seed: Array, share: Array
    ) -> Surrogate:
        """Return a surrogate fitted to all losses of some schedules only, evenly spread."""
        kept = np.linspace(0, len(self._distinct) - 1, _MOST_FITTED).round()
        rows: list[int] = np.flatnonzero(np.isin(self._of, kept)).tolist()
        some = Surrogate(self._space, pairwise=self._kernel.pairwise, by_cost=self._kernel.by_cost)
        return some.fit(
            [schedules[row] for row in rows], [losses[row] for row in rows], seed[rows].tolist(), share[rows].tolist()
        )

    @property
    def noise(self) -> float:
        """Standard deviation of one trial's loss around its schedule's mean, without the common seed effect, nats."""
        return self._scale[1.0][1] * float(np.exp(self._fitted["noise"]))

    def _covariance(self, log: dict[str, float]) -> Array:
        """Return the prior covariance of the observed losses, (N, N)."""
        covariance: Array = self._kernel.between(self._distinct, self._distinct, log)[np.ix_(self._of, self._of)]
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
        penalty = sum(((log[name] - self._kernel.prior[name][0]) / self._kernel.prior[name][1]) ** 2 for name in names)
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
        cross = self._kernel.between(codes, self._distinct, log)
        for row, at in self._matches(codes):
            cross[row, at] += rest
        mean: Array = cross @ self._each
        whole = cross[:, self._of] * self._ends
        return mean, self._kernel.diagonal(codes, log) + rest - ((whole @ self._inverse) * whole).sum(axis=1)

    def _matches(self, codes: Codes) -> list[tuple[int, int]]:
        """Return (row of the codes, index of the observed schedule) of each code that was observed."""
        held, width = codes.tobytes(), codes.shape[1] * codes.itemsize
        found = ((row, self._known.get(held[row * width : (row + 1) * width])) for row in range(len(codes)))
        return [(row, at) for row, at in found if at is not None]

    def mean(self, codes: Codes) -> Array:
        """Return the means of `predict`, (M,), for the `code` of each variable's span, (M, V).

        It is far faster for many schedules: single layers and pairs have one table of effects, whatever the number of
        observed losses.
        """
        if not self._kernel.pairwise:
            parts = [self._predicted(codes[at : at + _AT_ONCE])[0] for at in range(0, len(codes), _AT_ONCE)]
            mean = np.concatenate([np.empty(0), *parts])
        else:
            if self._tables is None:
                self._tables = self._kernel.effects(self._each, self._fitted)
            constant, single, pair = self._tables
            chosen = np.eye(self._kernel.n_spans)[codes].reshape(len(codes), -1)
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
        assert self._kernel.pairwise
        if self._tables is None:
            self._tables = self._kernel.effects(self._each, self._fitted)
        constant, single, pair = self._tables
        variables, spans = len(codes), self._kernel.n_spans
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


def _inverse(covariance: Array) -> Array:
    """Return the inverse of a covariance."""
    factor, problem = linalg.lapack.dpotrf(covariance, lower=1)
    inverse, failed = (factor, problem) if problem else linalg.lapack.dpotri(factor, lower=1)
    if failed:  # hyperparameters of other losses may leave it without full rank
        inverse = linalg.inv(covariance)
        return (inverse + inverse.T) / 2
    below = np.tril(inverse, -1)
    return np.diag(np.diag(inverse)) + below + below.T

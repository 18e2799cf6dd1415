"""The surrogate: what a schedule's loss will be, learnt from schedules that were trained.

A Gaussian process over schedules, additive plus pairwise in (layer, span):

    loss = constant + sum_v u_v(x_v) + sum_{v<w} p_vw(x_v, x_w) + rest(x) + seed effect + noise

Losses before the end of training may be given too. They are taken in units of their own spread at that point, and count
for the end as far as losses of the two points go together (a kernel over the share of training, fitted like the rest).

The prior holds that neighbouring layers and spans of like size have like effects, as far as the data say so (every
scale is fitted). ``rest`` is what single layers and pairs cannot express, independent for each schedule: it widens
intervals where the model is too simple. Kernels of sums and of products of layers: Duvenaud, Nickisch, Rasmussen,
"Additive Gaussian processes", 1112.4394; hyperparameters by the maximum of their posterior density (Rasmussen and
Williams, "Gaussian processes for machine learning", section 5.4).

Shape legend: N losses, M schedules asked for, V variables (groups of layers that share a choice), S distinct spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, special

from layersearch.errors import UserError
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import span_pairs

Array = NDArray[np.float64]

FEWEST = 4
"""Distinct schedules below which nothing is fitted."""
LEAST_SPREAD = 0.05
"""Schedules are taken to differ by at least this share of their loss, until trials say otherwise."""
# Log of each hyperparameter: mean and standard deviation of its normal prior. Losses are in units of their spread.
_PRIOR: dict[str, tuple[float, float]] = {
    "single": (-0.5, 1.0),  # standard deviation of the single layers' part
    "pair": (-1.5, 1.0),  # of pairs that are all alike at first sight
    "shared_pair": (-1.0, 1.0),  # of pairs that are alike for like layers
    "rest": (-2.5, 1.0),
    "noise": (-2.5, 1.5),
    "seed": (-2.5, 1.5),
    "reach": (-0.5, 1.0),  # over how many layers, as a share of the depth, effects are alike
    "width": (0.0, 1.0),  # over how much of the spans' logarithmic range effects are alike
    "early": (0.0, 1.0),  # over how much of the training losses go together
}
_SMOOTH: dict[str, tuple[float, float]] = {
    "single": (-1.5, 1.0),
    "bend": (0.0, 0.7),  # standard deviation of what any layers do together
    "bent": (0.0, 1.0),  # over how much of the spread of schedules that is alike
} | {name: _PRIOR[name] for name in ("rest", "noise", "seed", "reach", "width", "early")}
_JITTER = 1e-9
_FITTING = {"maxiter": 40, "ftol": 1e-5}


class Surrogate:
    """Predicts the mean loss over seeds of any schedule of a space.

    Args:
        space: the bound space; schedules outside it can be neither fitted nor asked for.
        pairwise: additive plus pairwise, as above. Otherwise layers may act together
            in any number: in place of pairs stands a squared exponential of the distance between schedules, which
            needs fewer trials where one layer is of use only below another.
    """

    def __init__(self, space: BoundSpace, *, pairwise: bool = True) -> None:
        self._space, self._pairwise = space, pairwise
        self._prior = _PRIOR if pairwise else _SMOOTH
        spans = list(dict.fromkeys(span for options in space.options for span in options))
        self._index = {span: at for at, span in enumerate(spans)}
        pairs = np.log([span_pairs(span, space.seq_len, space.n_heads) for span in spans])
        spread = max(float(np.ptp(pairs)), 1e-12)
        other = [[float(a.kind != b.kind and not (a.is_full or b.is_full)) for b in spans] for a in spans]
        decay = np.array([span.decay for span in spans])
        pool = np.array([float(span.pool > 1) for span in spans])
        far = np.abs(pairs[:, None] - pairs[None, :]) / spread + np.array(other)
        self._span_distance: Array = far + np.abs(decay[:, None] - decay) + np.abs(pool[:, None] - pool)
        places = np.array([np.mean(group) for group in space.groups])
        self._place_distance: Array = np.abs(places[:, None] - places[None, :]) / max(1, space.n_layers)
        self._fitted: dict[str, float] = {}

    def index(self, schedule: Schedule) -> list[int]:
        """Return the index of each variable's option.

        Raises:
            UserError: if the schedule lies outside the space.
        """
        found = []
        for group, options in zip(self._space.groups, self._space.options, strict=True):
            if len(schedule) != self._space.n_layers or schedule[group[0]] not in options:
                raise UserError(f"{schedule} lies outside search space {self._space.space.name!r}")
            found.append(options.index(schedule[group[0]]))
        return found

    def _codes(self, schedules: Sequence[Schedule]) -> NDArray[np.int64]:
        """Return the index of each variable's span, (M, V)."""
        firsts = [group[0] for group in self._space.groups]
        try:
            rows = [[self._index[schedule[at]] for at in firsts] for schedule in schedules]
        except (KeyError, IndexError):
            for schedule in schedules:
                self.index(schedule)  # says which lies outside
            raise
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
            seeds: their trials' seeds, so that what a seed does to all schedules alike is no noise; None: all the same.
            shares: how far each trial was, as a share of its training; None: all at the end. A trial may stand here
                several times. Whatever share is given, some trials must have both it and the end.
            like: take the hyperparameters of this one, which is quicker.

        Raises:
            UserError: if fewer than `FEWEST` distinct schedules are given that were trained to the end.
        """
        share = np.asarray([1.0] * len(losses) if shares is None else shares, dtype=np.float64)
        seed = np.asarray([0] * len(losses) if seeds is None else seeds)
        loss = np.asarray(losses, dtype=np.float64)
        whole = {(s, at) for s, at, part in zip(schedules, seed, share, strict=True) if part == 1.0}
        if len({s for s, _ in whole}) < FEWEST:
            raise UserError(
                f"{len({s for s, _ in whole})} schedules are too few to learn from: train at least {FEWEST}"
            )
        self._x, self._share = self._codes(schedules), share
        # Trials that were stopped were the worse ones: only those that ended say where a share's losses lie.
        ended = np.array([(s, at) in whole for s, at in zip(schedules, seed, strict=True)])
        self._scale = {}
        for part in np.unique(share):
            some = loss[ended & (share == part)]
            assert len(some), "a share of the training that no complete trial has"
            # Few trials that are all alike are no sign that nothing can differ.
            unit = max(float(some.std()), LEAST_SPREAD * abs(float(some.mean())), 1e-9)
            self._scale[float(part)] = (float(some.mean()), unit)
        self._y = np.array(
            [(y - self._scale[part][0]) / self._scale[part][1] for y, part in zip(loss, share, strict=True)]
        )
        self._distinct, self._of = np.unique(self._x, axis=0, return_inverse=True)
        self._same = (self._of[:, None] == self._of[None, :]).astype(np.float64)
        self._same_seed = (seed[:, None] == seed[None, :]).astype(np.float64)
        if like is not None:
            self._condition(like._fitted)
            return self
        unknown = {"seed"} if np.all(self._same_seed) else set()
        unknown |= {"early"} if len(self._scale) == 1 else set()
        names = [name for name in self._prior if name not in unknown]
        start = np.array([self._prior[name][0] for name in names])
        bounds = [(-7.0, 4.0)] * len(names)
        found = optimize.minimize(
            self._objective, start, args=(names,), method="L-BFGS-B", bounds=bounds, options=_FITTING
        )
        fixed = {name: middle for name, (middle, _) in self._prior.items()} | {"seed": -np.inf}
        self._condition(fixed | dict(zip(names, found.x, strict=True)))
        return self

    @property
    def noise(self) -> float:
        """The standard deviation of one trial's loss around its schedule's mean, what its seed does to all left out."""
        return self._scale[1.0][1] * float(np.exp(self._fitted["noise"]))

    def _span_vectors(self, scale: dict[str, float]) -> Array:
        """Return a vector for each span, whose inner products say how alike they are, (S, S)."""
        spans = np.exp(-((self._span_distance / scale["width"]) ** 2))
        # Centred, so that a single layer's effect is a departure from the average over spans.
        spans = spans - spans.mean(0) - spans.mean(1)[:, None] + spans.mean()
        spans /= max(float(np.diag(spans).mean()), 1e-12)
        return _embed(spans)

    def _features(self, codes: NDArray[np.int64], scale: dict[str, float]) -> tuple[Array, Array]:
        """Return each layer's span as a vector, and what it has in common with all layers, (rows, V, S) each."""
        layers = self._span_vectors(scale)[codes]
        places = np.exp(-self._place_distance / scale["reach"])
        return layers, np.einsum("vw,nvs->nws", places, layers, optimize=True) / codes.shape[1]

    def _kernel(self, left: NDArray[np.int64], right: NDArray[np.int64], log: dict[str, float]) -> Array:
        """Return the prior covariance of what layers do, (rows of left, rows of right)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        (a, mixed_a), (b, mixed_b) = self._features(left, scale), self._features(right, scale)
        single: Array = mixed_a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        result: Array = 1.0 + scale["single"] ** 2 * single
        if not self._pairwise:
            norms = [(x * y).sum(axis=(1, 2)) for x, y in ((mixed_a, a), (mixed_b, b))]
            distance = np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * single, 0.0)
            result += scale["bend"] ** 2 * np.exp(-distance / (2 * scale["bent"] ** 2))
            return result
        count, vectors = left.shape[1], self._span_vectors(scale)
        plain = a.reshape(len(left), -1) @ b.reshape(len(right), -1).T
        squares = ((vectors @ vectors.T) ** 2)[left].reshape(len(left), -1)
        own = squares @ np.eye(len(vectors))[right].reshape(len(right), -1).T  # of each layer with itself: no pair
        pair = (plain**2 - own) / max(1, count * (count - 1))
        result += scale["pair"] ** 2 * pair + scale["shared_pair"] ** 2 * single**2
        return result

    def _own(self, codes: NDArray[np.int64], log: dict[str, float]) -> Array:
        """Return the diagonal of `_kernel`, (rows,)."""
        scale = {name: float(np.exp(value)) for name, value in log.items()}
        layers, mixed = self._features(codes, scale)
        single = (layers * mixed).sum(axis=(1, 2))
        result: Array = 1.0 + scale["single"] ** 2 * single
        if not self._pairwise:
            result += scale["bend"] ** 2
            return result
        count = codes.shape[1]
        each = (layers**2).sum(axis=2)
        pair = (each.sum(1) ** 2 - (each**2).sum(1)) / max(1, count * (count - 1))
        result += scale["pair"] ** 2 * pair + scale["shared_pair"] ** 2 * single**2
        return result

    def _covariance(self, log: dict[str, float]) -> Array:
        """Return the prior covariance of the observed losses, (N, N)."""
        covariance = self._kernel(self._distinct, self._distinct, log)[self._of][:, self._of]
        covariance += np.exp(2 * log["rest"]) * self._same
        covariance += np.exp(2 * log.get("seed", -np.inf)) * self._same_seed
        covariance += np.exp(2 * log["noise"]) * self._same * self._same_seed
        covariance *= self._alike(self._share, self._share, log)
        covariance[np.diag_indices_from(covariance)] += _JITTER
        return covariance

    @staticmethod
    def _alike(left: Array, right: Array, log: dict[str, float]) -> Array:
        """Return how far losses at these shares of the training go together, in [0, 1]."""
        result: Array = np.exp(-np.abs(left[:, None] - right[None, :]) / np.exp(log.get("early", 0.0)))
        return result

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
        inverse = linalg.inv(self._covariance(log))
        self._inverse: Array = (inverse + inverse.T) / 2
        self._weights: Array = self._inverse @ self._y
        self._stretch = max(1.0, self._surprise())

    def left_out(self) -> tuple[Array, Array, Array]:
        """Return what all other schedules predict for each one that was trained to the end, and what came of it.

        Closed form, all losses of a schedule left out at once (Rasmussen and Williams, section 5.4.2). The
        hyperparameters are those fitted to all losses.

        Returns:
            Predicted mean of its last losses, their mean, and the prediction's standard deviation before it is
            stretched, the seeds' noise included; nats, one entry a schedule, in the order of their codes.
        """
        found = []
        centre, unit = self._scale[1.0]
        for at in range(self._of.max() + 1):
            held = np.flatnonzero(self._of == at)
            end = self._share[held] == 1.0
            if not end.any():
                continue
            block = linalg.inv(self._inverse[np.ix_(held, held)])
            missed = float((block @ self._weights[held])[end].mean())
            seen = float(self._y[held][end].mean())
            std = float(block[np.ix_(end, end)].mean()) ** 0.5
            found.append((centre + unit * (seen - missed), centre + unit * seen, unit * std))
        table = np.array(found)
        return table[:, 0], table[:, 1], table[:, 2]

    def _surprise(self) -> float:
        """Return by how much intervals must be stretched to hold 95% of schedules that are left out, each in turn.

        The rank is that of split conformal prediction (Vovk, Gammerman, Shafer, "Algorithmic learning in a random
        world", 2005), which the largest serves where there are too few.
        """
        predicted, observed, std = self.left_out()
        off = np.sort(np.abs(predicted - observed) / std)
        rank = min(len(off), int(np.ceil((len(off) + 1) * 0.95)))
        return float(off[rank - 1] / special.ndtri(0.975))

    def predict(self, schedules: Sequence[Schedule], *, stretched: bool = True) -> tuple[Array, Array]:
        """Return the mean loss over seeds and its standard deviation, nats, (M,) each.

        The standard deviation is that of the mean over seeds: what one more trial's seed adds is not in it. It is
        stretched where schedules left out of the fit lay farther off than it said, unless told not to.

        Raises:
            UserError: if a schedule lies outside the space.
        """
        codes = self._codes(schedules)
        log = self._fitted
        rest = float(np.exp(2 * log["rest"]))
        cross = self._kernel(codes, self._distinct, log)[:, self._of]
        cross += rest * np.all(codes[:, None] == self._x[None], axis=-1)
        cross *= self._alike(np.ones(len(codes)), self._share, log)
        variance = self._own(codes, log) + rest - ((cross @ self._inverse) * cross).sum(axis=1)
        centre, unit = self._scale[1.0]
        mean: Array = centre + unit * (cross @ self._weights)
        stretch = self._stretch if stretched else 1.0
        return mean, unit * stretch * np.sqrt(np.maximum(variance, _JITTER))


def _embed(covariance: Array) -> Array:
    """Return vectors whose inner products are a positive semidefinite matrix, (S, S)."""
    values, vectors = linalg.eigh(covariance)
    result: Array = vectors * np.sqrt(np.maximum(values, 0.0))
    return result

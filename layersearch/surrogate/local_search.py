"""The local search: improves an admitted choice on the whole model, where no program can hold it.

The best change of one or two variables until there is none, then again after a few changes at random from the best
(iterated local search). The same for the same arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from layersearch.surrogate.quadratic import Array, Choice, PairModel

UPSETS = 100
"""How often a search starts again."""
_UPSET = (1, 7)
"""After so many random changes, the last not included."""
_DRAWS = 10_000
"""Changes drawn for one that is admitted."""


class LocalSearch:
    """Searches one model; remembers where it has been, for a search that excludes what an earlier one found."""

    def __init__(self, model: PairModel) -> None:
        self._model = model
        self._ends: dict[tuple[int, ...], float] = {}

    def improve(self, starts: Sequence[Choice], banned: Collection[tuple[int, ...]]) -> Choice | None:
        """Return the best choice found from admitted starts and from where earlier searches ended.

        Args:
            starts: choices within the constraint; they may be banned.
            banned: choices that are not admitted.

        Returns:
            None if no choice was found that is not banned.
        """
        rng = np.random.default_rng(0)
        for start in starts:
            self._descend(Place(self._model, start), banned)
        ends = {options: value for options, value in self._ends.items() if options not in banned}
        if not ends:
            return None
        best = Place(self._model, np.array(min(ends, key=ends.__getitem__)))
        least = self._model.value(best.options)
        for _ in range(UPSETS):
            place = best.copy()
            for _ in range(int(rng.integers(*_UPSET))):
                place.upset(rng)
            found = self._descend(place, banned)
            if found is not None and (value := self._model.value(found.options)) < least:
                best, least = found, value
        return best.options

    def _descend(self, place: Place, banned: Collection[tuple[int, ...]]) -> Place | None:
        """Make the change that lowers the loss most until none does; from a banned choice the best change there is."""
        away = tuple(place.options) in banned
        while True:
            gains = place.gains()
            while True:
                at = int(gains.argmin())
                better = gains.flat[at] < -1e-12 * max(1.0, self._model.range)
                if not (better or (away and np.isfinite(gains.flat[at]))):
                    if away:
                        return None
                    self._ends[tuple(place.options)] = self._model.value(place.options)
                    return place
                if tuple(place.changed(at)) not in banned:
                    place.change(at)
                    away = False
                    break
                gains.flat[at] = np.inf


class Place:
    """A choice, and what changes of it add to the loss.

    A change is one number: that of a variable's new option times O, and that of another's, or the same.
    """

    def __init__(self, model: PairModel, options: Choice) -> None:
        self._model = model
        self.options = options.copy()
        self._now = options[model.of]  # the chosen option of each option's variable
        pair, now = model.pair, self._now
        # What two changes do together beyond the sum of both; of one variable there is one change only.
        self._joint: Array = pair - pair[:, now] - pair[now] + pair[np.ix_(now, now)]
        self._joint[model.of[:, None] == model.of] = np.inf

    def copy(self) -> Place:
        """Return another place that is the same choice."""
        other = object.__new__(Place)
        other._model, other.options = self._model, self.options.copy()
        other._now, other._joint = self._now.copy(), self._joint.copy()
        return other

    def changed(self, change: int) -> Choice:
        """Return the choice that a change leads to."""
        options = self.options.copy()
        for option in divmod(change, len(self._model.of)):
            options[self._model.of[option]] = option
        return options

    def change(self, change: int) -> None:
        """Make a change."""
        pair, now = self._model.pair, self._now
        for option in divmod(change, len(self._model.of)):
            v = int(self._model.of[option])
            part = self._model.part(v)
            self.options[v] = now[part] = option
            rows = pair[part] - pair[part][:, now] - pair[option] + pair[option, now]
            rows[:, part] = np.inf
            self._joint[part] = rows
            self._joint[:, part] = rows.T

    def upset(self, rng: np.random.Generator) -> None:
        """Make an admitted change at random; none if there is hardly any."""
        model = self._model
        for change in rng.integers(len(model.of) ** 2, size=_DRAWS):
            options = self.changed(int(change))
            if model.fits(options) and model.counted[model.mark[options].sum()]:
                self.change(int(change))
                return

    def gains(self) -> Array:
        """Return what each change adds to the loss, infinite where it is not admitted, (O, O)."""
        model, now = self._model, self._now
        each = model.single + model.pair[:, self.options].sum(axis=1)
        one, more, marks = each - each[now], model.weight - model.weight[now], model.mark - model.mark[now]
        room = model.room - int(model.weight[self.options].sum())
        count = int(model.mark[self.options].sum())
        two = self._joint + one[:, None]
        two += one
        np.copyto(two, np.inf, where=more[:, None] > room - more)
        kinds, kind = np.unique(marks, return_inverse=True)
        total = count + kinds[:, None] + kinds
        known = (total >= 0) & (total < len(model.counted))
        refused = ~(known & model.counted[np.where(known, total, 0)])
        if refused.any():
            np.copyto(two, np.inf, where=refused[:, kind][kind])
        single = (more <= room) & model.counted[count + marks]
        two[np.diag_indices_from(two)] = np.where(single, one, np.inf)
        return two

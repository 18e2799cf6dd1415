"""Pathfinder: do two circles mark the ends of one dashed path? (Linsley and others, 1805.08315; 2011.04006, sec. 2.2.5)

Our own generator after the published one's rules, with the Long Range Arena's parameters for 32, 64 and 128 pixels.
Two paths of dashes begin near each other. Each dash turns from the one before by an angle d, drawn in proportion to
max(cos(min(c |d|, pi/2)), 0)^2 with the continuity c, and keeps off all others by a margin. Shorter paths distract. A
circle marks the beginning of one path, another the end of the same path (class 1) or of the other one (class 0). A
picture is read row by row, one token a pixel, 256 levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from layersearch.config.data import DataConfig
from layersearch.data.classes.examples import CONTENT, Example, Maker
from layersearch.data.source import require

Picture = npt.NDArray[np.float64]
TRIES = 3
"""Times that a dash is drawn before its path is given up."""
DISTRACTOR_TRIES = 5
LEVELS = 256
SEED = 1805_08315
BORDER = 0.5
"""Pixels over which a line's edge fades."""


@dataclass(frozen=True)
class Shape:
    """The Long Range Arena's parameters for one size of picture."""

    length: int  # of a dash, pixels
    thickness: float
    margins: tuple[int, ...]  # pixels between dashes; one is drawn for each picture
    radius: float  # of a circle
    apart: int  # distance between the beginnings of the two paths
    continuity: float
    dashes: int  # of all distracting paths together
    bright: float  # of distracting dashes; those of the paths have `contrast` of it
    contrast: float
    padding: int = 1


SHAPES = {
    32: Shape(2, 0.5, (1,), 1.5, 7, 1.0, 20, 2.0, 0.75),
    64: Shape(5, 1.0, (1,), 2.5, 12, 1.8, 22, 0.8, 1.0),
    128: Shape(5, 1.5, (2, 3), 3.0, 20, 1.8, 35, 0.9, 1.0),
}


class Pathfinder(Maker):
    """Pictures of dashed paths; see the module."""

    name = "pathfinder"
    contents = LEVELS

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.side = math.isqrt(seq_len - 1)
        fits = self.side in SHAPES and self.side**2 + 1 == seq_len
        sizes = ", ".join(f"{side**2 + 1} ({side} x {side})" for side in SHAPES)
        require(fits, f"training.seq_len {seq_len} is no picture of data.source pathfinder: give one of {sizes}")
        self.shape = SHAPES[self.side]

    def identity(self) -> list[int]:
        return [self.side, self.config.contour_length]

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        return self._pictures(0), self._pictures(1)

    def _pictures(self, stream: int) -> Iterator[Example]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((SEED, stream))))
        while True:
            label = int(rng.integers(2))
            picture = draw(rng, self.side, self.shape, self.config.contour_length, label)
            levels = np.minimum((picture * (LEVELS / picture.max())).astype(np.int64), LEVELS - 1)
            yield Example((levels.ravel() + CONTENT).tolist(), label)


def draw(rng: np.random.Generator, side: int, shape: Shape, contour: int, label: int) -> Picture:
    """Return a picture, (side, side), brightest 1 or more.

    Args:
        rng: draws it.
        side: pixels.
        shape: parameters of its size.
        contour: dashes of each path.
        label: 1: the circles mark one path's ends; 0: ends of both.
    """
    margin = int(rng.choice(shape.margins))
    canvas = _Canvas(side, shape, margin)
    while (paths := canvas.two_paths(rng, contour)) is None:
        pass
    picture, taken, ends = paths
    short = max(1, contour // 3)
    for _ in range(shape.dashes // short):
        for _ in range(DISTRACTOR_TRIES):
            found = canvas.path(rng, taken, short)
            if found is not None:
                picture, taken = np.maximum(picture, found[0]), np.maximum(taken, found[1])
                break
    one = int(rng.integers(2))
    other = one if label else 1 - one
    for y, x in (ends[one][0], ends[other][1]):
        rows, columns = np.ogrid[:side, :side]
        circle = np.clip(shape.radius + BORDER - np.hypot(rows - y, columns - x), 0.0, 1.0)
        picture = np.maximum(picture, circle)
    return picture


Point = tuple[int, int]
Dash = tuple[Point, float, Picture, Picture]  # its pivot, its orientation, its pixels, and those that it keeps free


class _Canvas:
    """Draws dashes on a picture; orientations in radians, places (row, column)."""

    def __init__(self, side: int, shape: Shape, margin: int) -> None:
        self.side, self.shape, self.margin = side, shape, margin
        self.rows, self.columns = np.mgrid[:side, :side]
        disc = np.hypot(*np.mgrid[-margin : margin + 1, -margin : margin + 1]) <= margin
        self.disc: npt.NDArray[np.bool_] = disc

    def inside(self, place: Point) -> bool:
        """Tell whether a place is on the picture."""
        return 0 <= place[0] < self.side and 0 <= place[1] < self.side

    def dash(self, tail: Point, orientation: float) -> tuple[Picture, Picture]:
        """Return the pixels of a dash in [0, 1], and 1 where no other may be."""
        length = self.shape.length
        y, x = self.rows - tail[0], self.columns - tail[1]
        dy, dx = math.sin(orientation), math.cos(orientation)
        along = np.clip(y * dy + x * dx, 0, length)
        off = np.hypot(y - along * dy, x - along * dx)
        half = self.shape.thickness / 2
        pixels: Picture = np.clip(half + BORDER - off, 0.0, 1.0)
        return pixels, (off <= half + self.margin).astype(np.float64)

    def two_paths(
        self, rng: np.random.Generator, dashes: int
    ) -> tuple[Picture, Picture, list[tuple[Point, Point]]] | None:
        """Return both paths' pixels, what they take, and the beginning and end of each; None: they did not fit."""
        shape, edge = self.shape, self.shape.padding
        taken = np.ones((self.side, self.side))
        taken[edge:-edge, edge:-edge] = 0.0
        low, high = 2 * shape.apart, self.side - 2 * shape.apart
        first = (int(rng.integers(low, high)), int(rng.integers(low, high)))
        angle = rng.uniform(0, 2 * math.pi)
        second = (
            round(first[0] + shape.apart * math.sin(angle)),
            round(first[1] + shape.apart * math.cos(angle)),
        )
        begun: list[Dash] = []
        for tail in (first, second):
            made = self._begin(tail, rng.uniform(-math.pi, math.pi))
            if made is None:
                return None
            begun.append(made)
        bright = shape.bright * shape.contrast
        picture = np.maximum(begun[0][2], begun[1][2]) * bright
        heads = [first, second]
        # In turn, so that neither path fills the place of the other.
        for _ in range(dashes - 1):
            for at in (0, 1):
                grown = self._extend(rng, begun[at], taken)
                if grown is None:
                    return None
                taken = np.maximum(taken, begun[at][3])
                begun[at], heads[at] = grown
                picture = np.maximum(picture, grown[0][2] * bright)
        for one in begun:
            taken = np.maximum(taken, one[3])
        return picture, taken, [(first, heads[0]), (second, heads[1])]

    def path(self, rng: np.random.Generator, taken: Picture, dashes: int) -> tuple[Picture, Picture] | None:
        """Return a path's pixels and what it takes, where there is room; None: there was none."""
        orientation = rng.uniform(-math.pi, math.pi)
        free = np.argwhere(ndimage.binary_dilation(taken > 0, self.disc) == 0)
        if len(free) == 0:
            return None
        tail = free[rng.integers(len(free))]
        last = self._begin((int(tail[0]), int(tail[1])), orientation)
        if last is None or float((taken * last[3]).max()) > 0:
            return None
        pixels, own = last[2], taken
        for _ in range(dashes - 1):
            grown = self._extend(rng, last, own)
            if grown is None:
                return None
            own = np.maximum(own, last[3])
            last = grown[0]
            pixels = np.maximum(pixels, last[2])
        return pixels * self.shape.bright, np.maximum(own, last[3])

    def _begin(self, tail: Point, orientation: float) -> Dash | None:
        """Return the first dash of a path; the second one turns about its pivot."""
        length = self.shape.length
        head = _moved(tail, orientation, length)
        pivot = _moved(head, _turned(orientation), length + self.margin)
        if not (self.inside(tail) and self.inside(head) and self.inside(pivot)):
            return None
        return pivot, orientation, *self.dash(tail, orientation)

    def _extend(self, rng: np.random.Generator, last: Dash, taken: Picture) -> tuple[Dash, Point] | None:
        """Return a dash after the last one, and its head; None: there is no room."""
        step = self.shape.length + self.margin
        pivot = _moved(last[0], last[1], self.shape.length + 2 * self.margin)
        wide = ndimage.binary_dilation(taken > 0.5, self.disc)
        angles = np.arange(0, 2 * math.pi, 1 / step)
        heads = np.stack((pivot[0] + step * np.sin(angles), pivot[1] + step * np.cos(angles)), axis=1).astype(int)
        on = ((heads >= 0) & (heads < self.side)).all(axis=1)
        if not on.any():
            return None
        heads = np.unique(heads[on], axis=0)
        orientations = np.arctan2(heads[:, 0] - pivot[0], heads[:, 1] - pivot[1])
        turn = np.abs(orientations - last[1])
        turn = np.minimum(np.minimum(turn, 2 * math.pi - turn) * self.shape.continuity, math.pi / 2)
        weights = np.cos(turn) ** 2 * ~wide[heads[:, 0], heads[:, 1]]
        if weights.sum() < 1e-4:
            return None
        for _ in range(TRIES):
            at = int(rng.choice(len(heads), p=weights / weights.sum()))
            head = (int(heads[at][0]), int(heads[at][1]))
            pixels, own = self.dash(head, _turned(float(orientations[at])))
            if float((taken + own).max()) < 2:
                return (pivot, float(orientations[at]), pixels, own), head
        return None


def _turned(orientation: float) -> float:
    """Return the opposite orientation."""
    return orientation + math.pi if orientation < 0 else orientation - math.pi


def _moved(place: Point, orientation: float, distance: float) -> Point:
    """Return the pixel at a distance."""
    return (
        math.ceil(place[0] + distance * math.sin(orientation)),
        math.ceil(place[1] + distance * math.cos(orientation)),
    )

"""Chains of k links, every link planted beyond the reach of local layers from the one that leads to it.

A chain is k + 1 different tokens t0 → t1 → … → tk. The stream holds its links as pairs, the last links first, at least
``distance - 1`` tokens of filler between one run of links and the next, then the chains' first tokens as queries; the
answer to a query is the end of its chain. Two chains of two links::

    b1 c1 . b2 c2 . . . . . . . . a2 b2 . a1 b1 . . . . . . . . a1 . a2
                                                                c1   c2     to predict

All tokens come from one alphabet, in whatever place of a chain: matching a token to its earlier use is then learnt once
and serves every link. Training also scores the end of the chain after the second token of every pair, where fewer links
are left; validation scores the queries only. Answers never enter the stream, so that none can be copied from nearby.

How many full layers it takes, above one local layer that tells every token of its left neighbour:

- One layer of attention lets a token fetch what another position knows, chosen by what both knew before. After j full
  layers the second token of a pair can know the next 2^j - 1 links of its chain: it fetches, from the last token that
  it knows of, the links known there and the one that joins them (pointer doubling). A query needs the k-th link, so
  m = ceil(log2(k + 1)) = floor(log2 k) + 1 full layers are enough. The last links come first in the stream so that
  causal attention can do this.
- Fewer are not, for a model too narrow to carry all pairs at once: for any k-hop induction heads this is shown under a
  conjecture on parallel computation (Sanford, Hsu and Telgarsky, 2402.09268, sec. 4).
- Following one link a layer takes k full layers, and training may find only that. The answer states both numbers;
  up to k = 2 they agree.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, below, filler_kinds, spread


class Hops(Task):
    """See the module; ``hops``, ``pairs`` (chains), ``queries`` and ``distance`` come from the recipe."""

    name = "hops"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.hops, self.chains, self.queries, self.distance = config.hops, config.pairs, config.queries, config.distance
        self.fillers = filler_kinds(config, config.vocab_size)
        nodes = self.chains * (self.hops + 1)
        enough = next(size for size in itertools.count(nodes) if size - filler_kinds(config, size) >= nodes)
        require(
            config.vocab_size - self.fillers >= nodes,
            f"data.vocab_size {config.vocab_size} is too small for data.pairs {self.chains} chains of data.hops "
            f"{self.hops}: raise it to {enough}",
        )
        least = self.hops * (2 * self.chains + self.distance - 1) + self.queries
        require(
            seq_len >= least,
            f"training.seq_len {seq_len} is too short for data.hops {self.hops}, data.pairs {self.chains}, "
            f"data.queries {self.queries} and data.distance {self.distance}: raise it to {least} or lower one of them",
        )
        self.slack = seq_len - least
        items = self.hops * self.chains + self.queries
        # Filler, places, tokens of the chains, order of the chains in each run of links, which chains are asked for.
        self.widths = (
            seq_len,
            items,
            config.vocab_size - self.fillers,
            *[self.chains] * self.hops,
            self.chains,
        )
        self.draws = sum(self.widths)
        doubling = self.hops.bit_length()
        self.answer = KnownAnswer(
            optimal_l=doubling,
            stepwise_l=self.hops,
            note=f"full layers above a local one, while the local layers' reaches add up to less than {self.distance} "
            f"tokens: {doubling} by pointer doubling, {self.hops} if each follows one link",
            source="k-hop induction heads (2402.09268, sec. 4)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {
            "hops": config.hops,
            "pairs": config.pairs,
            "queries": config.queries,
            "distance": config.distance,
            "fillers": filler_kinds(config, config.vocab_size),
        }

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        filler, places, nodes, *orders, asked = np.split(uniform, np.cumsum(self.widths)[:-1], axis=1)
        rows = np.arange(len(uniform))[:, None]
        tokens = below(filler, self.fillers)
        targets = np.full_like(tokens, IGNORE)

        run = 2 * np.arange(self.chains)
        gap = 2 * self.chains + self.distance - 1
        compact = np.concatenate(
            [*(run + gap * link for link in range(self.hops)), gap * self.hops + np.arange(self.queries)]
        )
        place = spread(compact, places, self.slack)

        chosen = np.argsort(nodes, axis=1)[:, : self.chains * (self.hops + 1)]
        chain = self.fillers + chosen.reshape(len(uniform), self.chains, self.hops + 1)
        for number, order in enumerate(orders):  # the last links first
            link = self.hops - 1 - number
            at, which = place[:, number * self.chains : (number + 1) * self.chains], np.argsort(order, axis=1)
            tokens[rows, at], tokens[rows, at + 1] = chain[rows, which, link], chain[rows, which, link + 1]
            if number > 0 and not judged:  # the first run's second tokens are ends of chains themselves
                targets[rows, at + 1] = chain[rows, which, self.hops]
        at, which = place[:, self.hops * self.chains :], np.argsort(asked, axis=1)[:, : self.queries]
        tokens[rows, at], targets[rows, at] = chain[rows, which, 0], chain[rows, which, self.hops]
        return Batch(tokens, targets)

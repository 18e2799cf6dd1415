"""Chains of k links. Each link is farther from the link before it than local layers reach.

A chain is k + 1 different tokens t0 → t1 → … → tk. The stream holds its links as pairs, the last links first. At least
``distance - 1`` tokens of filler lie between one run of links and the next. The first tokens of chains follow as
queries; the answer to a query is the end of its chain. Two chains of two links::

    b1 c1 . b2 c2 . . . . . . . . a2 b2 . a1 b1 . . . . . . . . a1 . a2
                                                                c1   c2     to predict

All tokens come from one alphabet, whatever their place in a chain. Matching a token to its earlier use is then learned
once and serves every link. Training also scores the end of the chain after the second token of every pair, where fewer
links are left; validation scores the queries only. Answers never enter the stream, so no answer can be copied from
nearby.

The number of full layers it takes, above one local layer that gives every token its left neighbor:

- One layer of attention lets a token fetch the knowledge of another position, chosen by what both knew before. After j
  full layers the second token of a pair can know the next 2^j - 1 links of its chain. It fetches them from the last
  token that it knows, with the link that joins them (pointer doubling). A query needs the k-th link, so
  m = ceil(log2(k + 1)) = floor(log2 k) + 1 full layers are enough. The last links come first in the stream so that
  causal attention can do this.
- Fewer are not enough for a model too narrow to carry all pairs at once. For any k-hop induction heads this is shown
  under a conjecture on parallel computation (Sanford, Hsu and Telgarsky, 2402.09268, sec. 4).
- Following one link per layer takes k full layers, and training may find only that. The answer states both numbers;
  they agree up to k = 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer
from layersearch.data.tasks.base import Task, Uniform, choose, spread, to_integers


class Hops(Task):
    """Chains of k links; see the module. ``pairs`` is the number of chains."""

    name = "hops"
    keys = ("hops", "pairs", "queries", "distance", "fillers")

    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        hops, chains, queries, distance = config.hops, config.pairs, config.queries, config.distance
        self.need_vocabulary(chains * (hops + 1), f"data.pairs {chains} chains of data.hops {hops}")
        cause = f"data.hops {hops}, data.pairs {chains}, data.queries {queries} and data.distance {distance}"
        least = hops * (2 * chains + distance - 1) + queries
        self.slack = self.need_length(least, cause, " or lower one of them")
        doubling = hops.bit_length()
        answer = KnownAnswer(
            optimal_l=doubling,
            stepwise_l=hops,
            note=f"full layers above a local one, while the local layers' reaches add up to less than {distance} "
            f"tokens: {doubling} by pointer doubling, {hops} if each follows one link",
            source="k-hop induction heads (2402.09268, sec. 4)",
        )
        assert config.fillers is not None
        self.fillers = config.fillers
        # Filler, positions, tokens of the chains, order of the chains in each run of links, queried chains.
        items, nodes = hops * chains + queries, self.vocab_size - self.fillers
        return (self.seq_len, items, nodes, *[chains] * hops, chains), answer

    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        filler, positions, nodes, *orders, queried = parts
        hops, chains, queries = self.config.hops, self.config.pairs, self.config.queries
        rows = np.arange(len(filler))[:, None]
        tokens = to_integers(filler, self.fillers)
        targets = np.full_like(tokens, IGNORE)

        gap = 2 * chains + self.config.distance - 1
        runs = (gap * np.arange(hops)[:, None] + 2 * np.arange(chains)).ravel()
        position = spread(np.concatenate([runs, gap * hops + np.arange(queries)]), positions, self.slack)

        chain = self.fillers + choose(nodes, chains * (hops + 1)).reshape(len(filler), chains, hops + 1)
        for number, order in enumerate(orders):  # the last links first
            link, which = hops - 1 - number, choose(order, chains)
            at = position[:, number * chains : (number + 1) * chains]
            tokens[rows, at], tokens[rows, at + 1] = chain[rows, which, link], chain[rows, which, link + 1]
            if number > 0 and not evaluating:  # the second tokens of the first run are the ends of their chains
                targets[rows, at + 1] = chain[rows, which, hops]
        at, which = position[:, hops * chains :], choose(queried, queries)
        tokens[rows, at], targets[rows, at] = chain[rows, which, 0], chain[rows, which, hops]
        return Batch(tokens, targets)

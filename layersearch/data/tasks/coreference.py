"""Coreference across documents: which name of the first document means the same entity as an alias of another one?

A sequence holds ``documents`` documents. Each one names every entity in a statement of three tokens that begins with
the document's mark. The first document gives an attribute of the entity, then its alias there; the others give their
alias, then the attribute, which is what an entity's mentions share. An alias holds in its document only: the same word
may mean another entity elsewhere. At least ``distance - 1`` tokens of filler lie between one document and the next.
Queries follow, each a later document's mark and one of its aliases; the answer is the entity's alias in the first
document. Two entities, two documents::

    m1 x a m1 y b . . . . . . . . m2 c y m2 a x . . . . . . . . m2 a . m2 c
                                                                   a      b    to predict

No document answers alone: the later one tells the attribute, the first one the alias. Attributes and aliases come from
one alphabet, so that matching a word to its earlier use is learned once. Training also scores the end of every
statement of a later document, where the attribute is read already and one step is left; validation scores the queries
only. Answers never enter the stream, so no answer can be copied from nearby. A model that reads the aliases of the
first document and links nothing guesses one of ``pairs``.

The number of full layers it takes, above local layers that give every token its two left neighbors, is that of `hops`
with two links, by the same argument:

- Two are enough. In the first one, the end of a later statement fetches the alias that the first document gives its
  attribute. In the second one, a query fetches that from the statement with its own mark and alias.
- One is not enough for a model too narrow to carry all statements at once (2402.09268, sec. 4, under its conjecture): a
  query knows its mark and alias, and only the statement of the later document tells which attribute to look for.

With two documents the mark tells no more than the order of a statement does, and one left neighbor is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer
from layersearch.data.tasks.base import Task, Uniform, choose, spread, to_integers


class Coreference(Task):
    """Coreference across documents; see the module. ``pairs`` is the number of entities."""

    name = "coreference"
    keys = ("documents", "pairs", "queries", "distance", "fillers")

    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        documents, entities, queries, distance = config.documents, config.pairs, config.queries, config.distance
        cause = f"data.documents {documents}, data.pairs {entities}"
        # With one alias only there would be nothing to predict.
        self.need_vocabulary(documents + entities + max(entities, 2), cause)
        cause = (
            f"data.documents {documents}, data.pairs {entities}, data.queries {queries} and data.distance {distance}"
        )
        least = documents * (3 * entities + distance - 1) + 2 * queries
        self.slack = self.need_length(least, cause, " or lower one of them")
        answer = KnownAnswer(
            optimal_l=2,
            stepwise_l=2,
            note=f"two full layers above local ones that see two tokens back, while the local layers' reaches add up "
            f"to less than {distance} tokens: alias to attribute in one document, attribute to alias in another",
            source="k-hop induction heads (2402.09268, sec. 4) with k = 2",
        )
        assert config.fillers is not None
        self.first_mark = config.fillers
        self.first_word = self.first_mark + documents
        words = self.vocab_size - self.first_word
        # Filler, positions, words, aliases and order of the entities by document, queried mentions.
        items, mentions = documents * entities + queries, (documents - 1) * entities
        return (self.seq_len, items, words, *[words - entities, entities] * documents, mentions), answer

    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        filler, positions, words, *drawn, queried = parts
        documents, entities, queries = self.config.documents, self.config.pairs, self.config.queries
        rows = np.arange(len(filler))[:, None]
        tokens = to_integers(filler, self.first_mark)
        targets = np.full_like(tokens, IGNORE)

        gap = 3 * entities + self.config.distance - 1
        statements = (gap * np.arange(documents)[:, None] + 3 * np.arange(entities)).ravel()
        position = spread(np.concatenate([statements, gap * documents + 2 * np.arange(queries)]), positions, self.slack)

        word = self.first_word + choose(words, words.shape[1])
        attribute, others = word[:, :entities], word[:, entities:]
        # Alias of each entity in each document, [sequences, documents, entities].
        alias = np.stack([others[rows, choose(one, entities)] for one in drawn[::2]], axis=1)
        for document, order in enumerate(drawn[1::2]):
            at, which = position[:, document * entities : (document + 1) * entities], choose(order, entities)
            tokens[rows, at] = self.first_mark + document
            first, second = (attribute[rows, which], alias[rows, document, which])[:: 1 if document == 0 else -1]
            tokens[rows, at + 1], tokens[rows, at + 2] = first, second
            if document > 0 and not evaluating:
                targets[rows, at + 2] = alias[rows, 0, which]
        later, which = np.divmod(choose(queried, queries), entities)
        at = position[:, documents * entities :]
        tokens[rows, at], tokens[rows, at + 1] = self.first_mark + 1 + later, alias[rows, 1 + later, which]
        targets[rows, at + 1] = alias[rows, 0, which]
        return Batch(tokens, targets)

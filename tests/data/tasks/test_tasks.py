"""Generated tasks: what is planted, decoded by rules that know the tokens only."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.config.data import DataConfig
from layersearch.config.loader import build
from layersearch.data import describe
from layersearch.data.source import IGNORE
from layersearch.data.tasks import TASKS
from layersearch.errors import ConfigError, DataError
from tests.helpers.tasks import SMALL, open_task

OTHER = {
    "fillers": 3, "pairs": 5, "queries": 1, "distance": 17, "hops": 1, "documents": 2, "list_depth": 7, "list_args": 6,
    "reach": 5, "seq_len": 90, "vocab_size": 41,
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_task_fingerprint_follows_every_setting_it_reads(name):
    base = SMALL[name]
    read = {*open_task(name, **base).details["parameters"], "seq_len", "vocab_size"}
    assert {*base} <= read
    changed = {key: open_task(name, **base | {key: OTHER[key]}).fingerprint for key in read}
    assert len({*changed.values(), open_task(name, **base).fingerprint}) == len(read) + 1
    for key in OTHER.keys() - read:
        assert open_task(name, **base | {key: OTHER[key]}).fingerprint == open_task(name, **base).fingerprint


@pytest.mark.parametrize(
    ("name", "settings_", "optimal_l", "stepwise_l", "exact"),
    [
        ("recall", {}, 1, None, True),
        ("local", {}, 0, None, True),
        ("listops", {}, 1, 5, False),
        ("coreference", {}, 2, 2, True),
        ("hops", {"hops": 1}, 1, 1, True),
        ("hops", {}, 2, 2, True),
        ("hops", {"hops": 3, "seq_len": 99}, 2, 3, True),
        ("hops", {"hops": 4, "seq_len": 130}, 3, 4, True),
        ("hops", {"hops": 7, "seq_len": 200, "vocab_size": 64}, 3, 7, True),
    ],
)
def test_task_known_answer_is_data(name, settings_, optimal_l, stepwise_l, exact):
    source = open_task(name, **SMALL[name] | settings_)
    assert source.answer is not None
    assert (source.answer.optimal_l, source.answer.stepwise_l, source.answer.exact) == (optimal_l, stepwise_l, exact)
    assert source.answer.source
    facts = describe(source)
    assert (facts["known_optimal_l"], facts["known_stepwise_l"]) == (optimal_l, stepwise_l)


def links(tokens: np.ndarray, fillers: int) -> tuple[dict[int, tuple[int, int]], list[int]]:
    """Return every pair (first token: second token and its place), and the places of the queries.

    Knows only which tokens are filler, and that a query is the first token of a pair that was read before.
    """
    found: dict[int, tuple[int, int]] = {}
    singles, place = [], 0
    while place < len(tokens):
        if tokens[place] < fillers:
            place += 1
        elif tokens[place] in found:
            singles.append(place)
            place += 1
        else:
            found[int(tokens[place])] = int(tokens[place + 1]), place + 1
            place += 2
    return found, singles


@settings(max_examples=60, deadline=None)
@given(
    hops=st.integers(1, 5),
    pairs=st.integers(1, 5),
    share=st.floats(0, 1),
    distance=st.integers(1, 20),
    slack=st.integers(0, 20),
    spare=st.integers(0, 30),
    fillers=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_hops_chains_lead_from_query_to_answer(hops, pairs, share, distance, slack, spare, fillers, seed):
    queries = max(1, round(share * pairs))
    config = {"pairs": pairs, "queries": queries, "distance": distance, "fillers": fillers, "hops": hops}
    source = open_task(
        "hops",
        hops * (2 * pairs + distance - 1) + queries + slack,
        vocab_size=max(2, pairs) * (hops + 1) + fillers + spare,
        **config,
    )
    batch = source.train(seed=seed, step=0, batch_size=3)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        found, singles = links(tokens, fillers)
        assert len(singles) == queries
        assert len(found) == hops * pairs
        for place in np.flatnonzero(targets != IGNORE):
            token, at, steps = int(tokens[place]), int(place), 0
            while token in found:
                token, source_place = found[token]
                assert at - source_place >= distance
                at, steps = source_place, steps + 1
            assert token == targets[place]
            assert (steps == hops) == (place in singles)
        assert (targets != IGNORE).sum() == queries + (hops - 1) * pairs


def test_hops_validation_is_judged_by_the_whole_chain():
    source = open_task("hops", **SMALL["hops"])
    batch = source.validation(20)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        assert [*np.flatnonzero(targets != IGNORE)] == links(tokens, 5)[1]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.integers(2, 4),
    pairs=st.integers(1, 5),
    share=st.floats(0, 1),
    distance=st.integers(1, 20),
    slack=st.integers(0, 20),
    spare=st.integers(0, 30),
    seed=st.integers(0, 2**31),
)
def test_coreference_alias_leads_over_an_attribute_to_the_first_document(
    documents, pairs, share, distance, slack, spare, seed
):
    queries, fillers = max(1, round(share * pairs)), 2
    source = open_task(
        "coreference",
        documents * (3 * pairs + distance - 1) + 2 * queries + slack,
        vocab_size=fillers + documents + pairs + max(pairs, 2) + spare,
        **{"documents": documents, "pairs": pairs, "queries": queries, "distance": distance, "fillers": fillers},
    )
    batch = source.train(seed=seed, step=0, batch_size=3)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        said, asked = statements(tokens, fillers, documents)
        assert len(said) == documents * pairs
        assert len({(mark, alias) for mark, alias, _, _ in said}) == documents * pairs
        attributes = {(mark, alias): (attribute, place) for mark, alias, attribute, place in said}
        # The first document says the attribute first.
        first = {attribute: (alias, place) for mark, attribute, alias, place in said if mark == fillers}
        scored = {}
        for mark, alias, place in asked:
            attribute, there = attributes[mark, alias]
            assert mark > fillers
            assert place - there >= distance
            scored[place] = first[attribute][0]
        for mark, _, attribute, place in said:
            if mark > fillers:
                assert place - first[attribute][1] >= distance
                scored[place] = first[attribute][0]
        assert len(asked) == len({(mark, alias) for mark, alias, _ in asked}) == queries
        assert {place: targets[place] for place in np.flatnonzero(targets != IGNORE)} == scored
    evaluated = source.validation(3)
    for tokens, targets in zip(evaluated.tokens, evaluated.targets, strict=True):
        assert [*np.flatnonzero(targets != IGNORE)] == [at for _, _, at in statements(tokens, fillers, documents)[1]]


def test_coreference_alias_means_another_entity_in_another_document():
    """An alias alone answers no better than a guess: the same alias stands for all entities alike."""
    source = open_task("coreference", 30, vocab_size=12, documents=2, pairs=3, queries=3, distance=4, fillers=2)
    batch = source.validation(3000)
    same = batch.tokens[batch.targets != IGNORE] == batch.targets[batch.targets != IGNORE]
    # Five words are left for aliases: one is its own answer in one of five. 9000 queries: standard deviation 0.004.
    assert abs(same.mean() - 0.2) < 0.02


def statements(tokens: np.ndarray, fillers: int, documents: int) -> tuple[list[tuple], list[tuple]]:
    """Return every statement (mark, two words, place of the last) and query (mark, alias, its place).

    Knows only which tokens are marks and aliases: a query has no attribute behind it, and a mark before its alias.
    """
    said, asked, seen = [], [], set()
    place = 0
    while place < len(tokens):
        if tokens[place] < fillers:
            place += 1
            continue
        mark, alias = int(tokens[place]), int(tokens[place + 1])
        assert mark < fillers + documents <= alias
        if (mark, alias) in seen:
            asked.append((mark, alias, place + 1))
            place += 2
        else:
            seen.add((mark, alias))
            said.append((mark, alias, int(tokens[place + 2]), place + 2))
            place += 3
    return said, asked


def evaluate(tokens: np.ndarray) -> tuple[int, int]:
    """Return value and depth of an expression with a stack, as a calculator does."""
    rules = {12: min, 13: max, 14: lambda values: int(np.median(values)), 15: lambda values: sum(values) % 10}
    stack: list[list[int]] = []
    deepest = 0
    for token in tokens.tolist():
        if token in rules:
            stack.append([token])
            deepest = max(deepest, len(stack))
            continue
        if token == 11:
            operator, *values = stack.pop()
            token = rules[operator](values)
            if not stack:
                return token, deepest
        assert 0 <= token < 10
        stack[-1].append(token)
    raise AssertionError("a bracket is open")


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(4, 10), args=st.integers(3, 10), seq_len=st.integers(4, 60), seed=st.integers(0, 2**31))
def test_listops_lists_have_their_value(depth, args, seq_len, seed):
    batch = open_task("listops", seq_len, vocab_size=16, list_depth=depth, list_args=args).train(
        seed=seed, step=0, batch_size=4
    )
    assert (batch.targets[:, :-1] == IGNORE).all()
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        start = int((tokens != 10).argmax())
        assert (tokens[start:] != 10).all()
        assert len(tokens) - start >= seq_len // 4
        value, deepest = evaluate(tokens[start:])
        assert value == targets[-1]
        assert deepest <= depth - 1


def test_listops_lists_follow_the_published_grammar():
    batch = open_task("listops", 200, vocab_size=16).train(seed=0, step=0, batch_size=300)
    tokens, counts = np.unique(batch.tokens[batch.tokens != 10], return_counts=True)
    count = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
    operators = [count[token] for token in (12, 13, 14, 15)]
    assert sum(operators) == count[11]
    # Each operator with probability 1/4, each digit with 1/10.
    assert (abs(np.array(operators) / sum(operators) - 0.25) < 0.03).all()
    digits = np.array([count[digit] for digit in range(10)])
    assert (abs(digits / digits.sum() - 0.1) < 0.01).all()
    # Every class occurs as a value.
    assert {*batch.targets[:, -1].tolist()} == {*range(10)}


def test_local_sequences_follow_their_chain_and_no_more():
    source = open_task("local", 64, vocab_size=4, reach=5)
    batch = source.train(seed=0, step=0, batch_size=4000)
    assert (batch.targets[:, :4] == IGNORE).all()
    assert (batch.targets[:, 4:] != IGNORE).all()
    np.testing.assert_array_equal(batch.targets[:, 4:-1], batch.tokens[:, 5:])
    last, far, older = batch.tokens[:, 6:], batch.tokens[:, 2:-4], batch.tokens[:, :-6]
    following = batch.targets[:, 6:]
    for one in range(4):
        for two in range(4):
            here = (last == one) & (far == two)
            expected = source.conditional(np.array(one), np.array(two))
            for three in (slice(None), 0, 3):  # a token one farther back than reach changes nothing
                chosen = here if isinstance(three, slice) else here & (older == three)
                seen = np.bincount(following[chosen], minlength=4) / chosen.sum()
                assert (abs(seen - expected) < 5 * (0.25 / chosen.sum()) ** 0.5).all()


@pytest.mark.parametrize(
    ("name", "settings_", "message"),
    [
        ("recall", {"seq_len": 25}, "training.seq_len 25 is too short .* data.distance 16: raise it to 26"),
        ("recall", {"vocab_size": 8}, "data.vocab_size 8 is too small for data.pairs 4: raise it to 9"),
        ("hops", {"seq_len": 48}, "training.seq_len 48 is too short .* raise it to 49"),
        ("hops", {"vocab_size": 12}, "data.vocab_size 12 is too small .* raise it to 13"),
        ("coreference", {"seq_len": 62}, "training.seq_len 62 is too short .* raise it to 63"),
        ("coreference", {"vocab_size": 11}, "data.vocab_size 11 is too small .* raise it to 12"),
        ("listops", {"vocab_size": 15}, "data.vocab_size 15 is too small .* raise it to 16"),
        ("local", {"seq_len": 7}, "training.seq_len 7 is too short .* raise it to 8"),
    ],
)
def test_task_that_does_not_fit_names_the_key_and_a_value_that_would(name, settings_, message):
    with pytest.raises(DataError, match=message):
        open_task(name, **SMALL[name] | settings_)
    (key,) = settings_
    enough = int(re.findall(r"raise it to (\d+)", message)[0])
    open_task(name, **SMALL[name] | {key: enough})


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"documents": 1}, "documents: input should be greater than or equal to 2, found 1"),
        ({"hops": 0}, "hops: input should be greater than 0, found 0"),
        ({"fillers": 0}, "fillers: input should be greater than 0, found 0"),
        ({"list_args": 1}, "list_args: input should be greater than or equal to 2, found 1"),
        ({"recall_share": 1.0}, "recall_share: input should be less than 1, found 1.0"),
    ],
)
def test_task_settings_out_of_range_are_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, {"source": "hops", **settings_}, "f")

"""Retrieval examples: their length, their facts, and the place of each answer."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from layersearch.config.selection import DEPTHS
from layersearch.data.tokenizer import EOS
from layersearch.errors import ConfigError
from layersearch.selection.retrieval import NAMES, TASKS, Example, make_example
from tests.helpers.selections import small_tokenizer

EVERY = tuple(TASKS)
FACTS = {
    "pass_key": r"The pass key is (\d{5})\. Remember it\. \1 is the pass key\.",
    "needle_among_distractors": r"The special magic number for (\w+) is (\d{5})\.",
    "several_keys": r"The code of (\w+) is (\d{5})\.",
    "variable_tracking": r"VAR (\w) = (\d{5}|VAR \w)\.",
}
COUNTS = {"pass_key": 1, "needle_among_distractors": 4, "several_keys": 2, "variable_tracking": 3}
QUESTION = r"\n(?:What|Which)"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def made(tokenizer: Tokenizer, number: int = 0, *, seq_len: int = 700, seed: int = 0, **more: bool) -> Example:
    return make_example(tokenizer, EVERY, seq_len=seq_len, number=number, seed=seed, **more)


def split(tokenizer: Tokenizer, example: Example) -> tuple[str, str]:
    """Return the text before the questions, and the questions."""
    text = tokenizer.decode(example.tokens.tolist(), skip_special_tokens=False)
    at = re.search(QUESTION, text)
    assert at is not None
    return text[: at.start()], text[at.start() :]


def answers(tokenizer: Tokenizer, example: Example) -> dict[str, str]:
    return {a.task: tokenizer.decode(example.tokens[a.start : a.stop].tolist()).strip() for a in example.answers}


@pytest.mark.parametrize("seq_len", [500, 501, 777, 2000])
def test_example_has_exactly_the_length_asked_for(tokenizer: Tokenizer, seq_len: int) -> None:
    for number in range(4):
        for with_facts in (True, False):
            example = made(tokenizer, number, seq_len=seq_len, with_facts=with_facts)
            assert example.tokens.shape == (seq_len,)
            assert {answer.task for answer in example.answers} == set(TASKS)


@pytest.mark.parametrize("number", range(4))
def test_example_answers_are_the_digits_that_the_facts_give(tokenizer: Tokenizer, number: int) -> None:
    example = made(tokenizer, number)
    hidden, asked = split(tokenizer, example)
    found = answers(tokenizer, example)
    assert all(re.fullmatch(r"\d{5}", digits) for digits in found.values())
    assert found["pass_key"] == re.findall(FACTS["pass_key"], hidden)[0]
    needle = re.search(r"What is the special magic number for (\w+)\? The special magic number for \1 is", asked)
    assert needle is not None
    assert found["needle_among_distractors"] == dict(re.findall(FACTS["needle_among_distractors"], hidden))[needle[1]]
    keys = re.search(r"What are the codes of (\w+) and (\w+)\? The codes are (\d+) and", asked)
    assert keys is not None
    codes = dict(re.findall(FACTS["several_keys"], hidden))
    assert (codes[keys[1]], codes[keys[2]]) == (keys[3], found["several_keys"])
    values, variable = dict(re.findall(FACTS["variable_tracking"], hidden)), re.search(r"has VAR (\w)\?", asked)
    assert variable is not None
    value = values[variable[1]]
    for _ in range(2):  # two links, then the number
        value = values[value.removeprefix("VAR ")]
    assert value == found["variable_tracking"]


@pytest.mark.parametrize("number", range(4))
def test_example_tokens_before_an_answer_end_with_its_question(tokenizer: Tokenizer, number: int) -> None:
    """The answer follows its question at once: nothing of it stands before its first token."""
    example = made(tokenizer, number)
    ends = {
        "pass_key": r"The pass key is ?$",
        "needle_among_distractors": r"The special magic number for \w+ is ?$",
        "several_keys": r"The codes are \d{5} and ?$",
        "variable_tracking": r"VAR \w = VAR \w = VAR \w = ?$",
    }
    for answer in example.answers:
        before = tokenizer.decode(example.tokens[: answer.start].tolist())
        assert re.search(ends[answer.task], before), before[-60:]
        after = tokenizer.decode(example.tokens[answer.stop :].tolist())
        assert after == "" or after.startswith("\n")


def test_example_holds_every_fact_once_and_none_without_facts(tokenizer: Tokenizer) -> None:
    for number in range(4):
        hidden, asked = split(tokenizer, made(tokenizer, number))
        bare, questions = split(tokenizer, made(tokenizer, number, with_facts=False))
        for task, pattern in FACTS.items():
            assert len(re.findall(pattern, hidden)) == COUNTS[task]
        assert not re.search(r"\d|VAR|code of|magic", bare)
        assert questions == asked  # the same answers, which can now only be guessed
        assert answers(tokenizer, made(tokenizer, number)) == answers(
            tokenizer, made(tokenizer, number, with_facts=False)
        )


def test_example_names_variables_and_codes_are_distinct_within_one_sequence(tokenizer: Tokenizer) -> None:
    for number in range(12):
        hidden, _ = split(tokenizer, made(tokenizer, number))
        needles, codes = (re.findall(FACTS[t], hidden) for t in ("needle_among_distractors", "several_keys"))
        names = [name for name, _ in [*needles, *codes]]
        assert len(set(names)) == len(names) == 6
        assert set(names) <= set(NAMES)
        variables = [name for name, _ in re.findall(FACTS["variable_tracking"], hidden)]
        assert len(set(variables)) == 3


def test_example_facts_stand_at_the_depths_that_take_turns(tokenizer: Tokenizer) -> None:
    first = {"pass_key": "The pass key is", "variable_tracking": "VAR"}
    depths: dict[str, list[float]] = {task: [] for task in TASKS}
    for number in range(4):
        example = made(tokenizer, number, seq_len=1500)
        hidden, _ = split(tokenizer, example)
        for answer in example.answers:
            depths[answer.task].append(answer.depth)
            if answer.task in first:
                place = hidden.index(first[answer.task]) / len(hidden)
                assert place == pytest.approx(answer.depth, abs=0.08)  # the other facts shift it a little
    assert all(sorted(found) == list(DEPTHS) for found in depths.values())
    assert all(len({depths[task][number] for task in TASKS}) == len(TASKS) for number in range(4))


def test_example_is_the_same_for_one_seed_and_number_alone(tokenizer: Tokenizer) -> None:
    texts = {}
    for seed, number in itertools.product(range(2), range(3)):
        example = made(tokenizer, number, seed=seed)
        assert example.tokens.tolist() == made(tokenizer, number, seed=seed).tokens.tolist()
        texts[seed, number] = tuple(example.tokens.tolist())
    assert len(set(texts.values())) == 6


def test_example_of_some_tasks_asks_for_those_alone(tokenizer: Tokenizer) -> None:
    example = make_example(tokenizer, ("pass_key", "several_keys"), seq_len=300, number=0, seed=0)
    assert {answer.task for answer in example.answers} == {"pass_key", "several_keys"}
    assert "VAR" not in tokenizer.decode(example.tokens.tolist())


def test_example_begins_with_the_token_that_the_tokenizer_puts_before_a_text(tokenizer: Tokenizer) -> None:
    begins = Tokenizer.from_str(tokenizer.to_str())
    bos = begins.token_to_id(EOS)
    begins.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{EOS} $A", special_tokens=[(EOS, bos)]
    )
    example = made(begins)
    assert example.tokens[0] == bos
    assert (example.tokens == bos).sum() == 1
    assert len(example.tokens) == 700
    assert answers(begins, example) == answers(tokenizer, made(tokenizer))


def test_example_of_a_tokenizer_saved_with_padding_and_truncation_is_the_same(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from layersearch.data.tokenizer import open_tokenizer

    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.enable_padding(length=64)
    padded.enable_truncation(8)
    padded.save(str(tmp_path / "tokenizer.json"))
    opened, _ = open_tokenizer(str(tmp_path))
    assert made(opened).tokens.tolist() == made(tokenizer).tokens.tolist()


def test_example_answers_of_single_digit_tokens_leave_out_the_blank() -> None:
    """Llama 3 and SmolLM split numbers; a blank before them is a token of its own and can be told without the fact."""
    from tokenizers import pre_tokenizers

    tokenizer = small_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    example = made(tokenizer, seq_len=900)
    for answer in example.answers:
        assert answer.stop - answer.start == 5
        assert tokenizer.decode(example.tokens[answer.start : answer.stop].tolist()).isdigit()


def test_example_text_too_short_for_the_facts_is_refused_with_the_length_it_needs(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ConfigError,
        match=r"training\.seq_len 60 is too short .* selection\.tasks \(run\) or retrieval_tasks \(convert\)$",
    ) as error:
        made(tokenizer, seq_len=60)
    assert "\n" not in str(error.value)
    need = re.search(r"need (\d+) tokens", str(error.value))
    assert need is not None
    assert len(made(tokenizer, seq_len=int(need[1])).tokens) == int(need[1])
    with pytest.raises(ConfigError, match="too short"):
        made(tokenizer, seq_len=int(need[1]) - 1)

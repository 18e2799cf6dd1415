"""Retrieval tasks in the words of a model's own tokenizer: facts hidden in filler text, asked for at its end.

The kinds follow RULER (2404.06654): a pass key, a needle among distractors, several keys, and a chain of variables.
One sequence holds a fact of every task, each at a depth of its own, and asks for all of them at its end. So one forward
pass measures every task. An answer's score is the cross-entropy of its digits, nats, and the share that the model
predicts. A task that the full model cannot do tells nothing about a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layersearch.config.selection import depth_of
from layersearch.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "The river runs to the sea. Boats pass under the old bridge. Nobody counts them any more.",
    "Bread is baked before sunrise. The shop opens at seven. Children walk to school in pairs.",
    "Snow fell on the hills last night. The road was closed until noon. Then the plows came.",
)
"""Sentences that say nothing about any key; the first line is RULER's."""
NAMES = (
    *("red", "green", "silver", "winter", "river", "garden", "market", "harbor"),
    *("castle", "forest", "copper", "bridge", "orange", "summer", "island", "window"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Facts to hide in a text, the question at its end, and the answer."""

    facts: tuple[str, ...]
    """Sentences hidden in the filler, in this order; the first is the one asked for, or begins its chain."""
    question: str
    answer: str
    """A number in digits."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer in a sequence."""

    task: str
    depth: float
    """Depth of its first fact, in [0, 1]."""
    start: int
    """Position of the answer's first token."""
    stop: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence with its answers."""

    tokens: Tensor
    """(T,) token ids, the answers included."""
    answers: tuple[Answer, ...]


class _Draw:
    """Names, variables and numbers of one sequence, each drawn once."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._names, self._letters = rng.sample(NAMES, len(NAMES)), rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 24)

    def name(self) -> str:
        return self._names.pop()

    def letter(self) -> str:
        return self._letters.pop()

    def number(self) -> str:
        return str(self._rng.randint(10_000, 99_999))


def pass_key(draw: _Draw) -> Question:
    """Return one number to remember."""
    key = draw.number()
    return Question(
        facts=(f"The pass key is {key}. Remember it. {key} is the pass key.",),
        question="What is the pass key? The pass key is",
        answer=key,
    )


def needle_among_distractors(draw: _Draw) -> Question:
    """Return one number by name, and three numbers of other names."""
    names, numbers = [draw.name() for _ in range(4)], [draw.number() for _ in range(4)]
    return Question(
        facts=tuple(f"The special magic number for {name} is {n}." for name, n in zip(names, numbers, strict=True)),
        question=f"What is the special magic number for {names[0]}? The special magic number for {names[0]} is",
        answer=numbers[0],
    )


def several_keys(draw: _Draw) -> Question:
    """Return two numbers by name, asked for together."""
    first, second, a, b = draw.name(), draw.name(), draw.number(), draw.number()
    return Question(
        facts=(f"The code of {second} is {b}.", f"The code of {first} is {a}."),
        question=f"What are the codes of {first} and {second}? The codes are {a} and",
        answer=b,
    )


def variable_tracking(draw: _Draw) -> Question:
    """Return a variable that is set through two others."""
    x, y, z, value = draw.letter(), draw.letter(), draw.letter(), draw.number()
    return Question(
        facts=(f"VAR {x} = {value}.", f"VAR {y} = VAR {x}.", f"VAR {z} = VAR {y}."),
        question=f"Which value has VAR {z}? VAR {z} = VAR {y} = VAR {x} =",
        answer=value,
    )


TASKS: dict[str, Callable[[_Draw], Question]] = {
    task.__name__: task for task in (pass_key, needle_among_distractors, several_keys, variable_tracking)
}
"""Every task by name."""


def make_example(
    tokenizer: Tokenizer, tasks: Sequence[str], *, seq_len: int, number: int, seed: int, with_facts: bool = True
) -> Example:
    """Return one sequence of exactly ``seq_len`` tokens that asks for one answer of every task.

    Args:
        tokenizer: the model's own.
        tasks: keys of `TASKS`.
        seq_len: tokens T, the answers' included.
        number: of the sequence; tasks take turns at their depths from one number to the next, see `depth_of`.
        seed: of the names, the numbers and the filler.
        with_facts: hide the facts; without them the answers can only be guessed, which shows the chance level.

    Raises:
        ConfigError: if the facts and the questions alone are longer than the text.
    """
    rng = Random(f"{seed}/{number}")
    draw = _Draw(rng)
    asked = {task: TASKS[task](draw) for task in tasks}
    depths = {task: depth_of(task, tasks, number) for task in tasks}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    end: list[int] = []
    answers: list[tuple[str, int, int]] = []
    for task in rng.sample(list(tasks), len(tasks)):
        question = asked[task]
        end += encode(f"\n{question.question}")
        # A blank that is a token of its own belongs to the question: it can be told without the fact.
        for token in encode(f" {question.answer}"):
            if any(character.isdigit() for character in tokenizer.decode([token])):
                if not answers or answers[-1][0] != task:
                    answers.append((task, len(end), len(end)))
                answers[-1] = (task, answers[-1][1], len(end) + 1)
            end.append(token)
    hidden: list[tuple[float, list[int]]] = []
    for task, question in asked.items():
        for at, fact in enumerate(question.facts):
            depth = depths[task] + (1 - depths[task]) * at / len(question.facts)
            hidden.append((depth, encode(f" {fact}") if with_facts else []))
    start = tokenizer.encode("").ids[:1]  # the token before a text, if there is one
    room = seq_len - len(start) - len(end) - sum(len(fact) for _, fact in hidden)
    if room < 0:
        raise ConfigError(
            f"training.seq_len {seq_len} is too short for the retrieval tasks ({', '.join(tasks)}), which need "
            f"{seq_len - room} tokens; raise it, or name fewer in selection.tasks (run) or retrieval_tasks (convert)"
        )
    filler: list[int] = []
    while len(filler) < room:
        filler += encode(" " + rng.choice(FILLER))
    text, before = list(start), 0
    for depth, tokens in sorted(hidden, key=lambda one: one[0]):
        place = round(room * depth)
        text += filler[before:place] + tokens
        before = place
    text += filler[before:room]
    found = tuple(
        Answer(task=task, depth=depths[task], start=len(text) + first, stop=len(text) + stop)
        for task, first, stop in answers
    )
    return Example(tokens=torch.tensor([*text, *end]), answers=found)

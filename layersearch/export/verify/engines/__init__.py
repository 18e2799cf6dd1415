"""Proof in the engine itself: which schedule does vLLM, MLX-LM, llama.cpp or transformers run?

The engine runs a text in a process of its own. Its log-probabilities are compared with those of every schedule of
`candidates`; the nearest is the one that ran. Then the engine generates past every window with its own cache.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layersearch.export.verify.engines.environments import ENVIRONMENTS, checked, find_python, run_engine
from layersearch.export.verify.engines.loading import Source, engine_model
from layersearch.export.verify.engines.references import Reference, candidates
from layersearch.export.verify.engines.small_models import EngineModel
from layersearch.export.verify.mask_probe import text_length
from layersearch.export.verify.nearness import MARGIN, Compared, Nearness, compare
from layersearch.schedule import Schedule

__all__ = ["ENVIRONMENTS", "EngineProof", "Experiment", "verify_in_engine"]

TOLERANCE = 2e-3
"""Largest difference of a log-probability in nats, in single precision."""
CACHE_TOLERANCE = 0.03
"""The same for generated tokens: llama.cpp's flash attention rounds to half precision."""
MIN_TOKENS, NEW = 96, 24


@dataclass(frozen=True, kw_only=True)
class EngineProof(Compared):
    """Which schedule an engine ran, and whether its cache gives the same text."""

    engine: str
    version: str
    architecture: str
    """The model type of the reference."""
    schedule: str
    """Text form of the expected schedule."""
    tokens: int
    weights: str
    """``random``, or ``the folder's own``."""
    asked: Nearness
    nearest: Nearness
    next_nearest: Nearness
    tried: int
    """How many schedules were compared."""
    generated: int
    """Tokens generated with the engine's cache, past every window."""
    equal: int
    """How many of them the reference without a cache would choose too."""
    cache_error: float
    """Largest difference of their log-probabilities, in nats."""

    @property
    def problem(self) -> str | None:
        """The first difference, in one line; None if everything agrees."""
        near = self.nearest
        if near.name != self.asked.name and near.error * MARGIN < self.asked.error:
            return f"{self.engine} ran {near.name} ('{near.schedule}'), not the schedule asked for"
        if near.name != self.asked.name or self.asked.error > TOLERANCE:
            return (
                f"{self.engine} differs by {self.asked.error:.2g} nats from the schedule asked for, and by "
                f"{near.error:.2g} from the nearest of {self.tried}: its weights or positions are read in another way"
            )
        if not self.told_apart:
            return (
                f"'{self.next_nearest.name}' is as near ({self.next_nearest.error:.2g} nats against "
                f"{self.asked.error:.2g}): these weights do not tell them apart"
            )
        if self.equal < self.generated or self.cache_error > CACHE_TOLERANCE:
            return (
                f"with its cache {self.equal} of {self.generated} tokens are the reference's, log-probabilities "
                f"differ by {self.cache_error:.2g} nats"
            )
        return None


def verify_in_engine(
    folder: Path,
    engine: str,
    *,
    schedule: Schedule | None = None,
    python: Path | None = None,
    model: Path | None = None,
    seed: int = 0,
) -> EngineProof:
    """Run an exported folder in an engine and tell which schedule it runs.

    Args:
        folder: what ``layersearch export`` wrote, with ``schedule.yaml``.
        engine: a key of `ENVIRONMENTS`.
        schedule: the expected schedule; None: the one in the folder.
        python: of the engine's environment; None: as `find_python` finds it.
        model: for a folder with ``vllm.yaml``: the served model's folder, or its ``config.json``.
        seed: of the text.

    Raises:
        ExportError: if the folder, the engine or its environment is missing or cannot run. An engine that runs another
            schedule is no error: its `EngineProof` is not ``proven``.
    """
    executable = find_python(engine, python)
    asked, source = engine_model(folder, engine, schedule, model)
    for own in (True, False):
        with tempfile.TemporaryDirectory() as scratch:
            experiment = Experiment(engine, asked, source, str(folder), Path(scratch, "model"), seed=seed, own=own)
            proof = experiment.judge(run_engine(engine, executable, [experiment.request])[0])
        if proof.told_apart or proof.weights == "random":
            break
    return proof


class Experiment:
    """One model for one engine: the request, and what its result proves."""

    def __init__(
        self, engine: str, asked: Schedule, source: Source, where: str, out: Path, *, seed: int = 0, own: bool = True
    ) -> None:
        """Write the model to ``out``: with its ``own`` weights if it has small ones, else with random ones."""
        self._engine, self._asked, self._where = engine, asked, where
        self._tokens = max(MIN_TOKENS, text_length(asked, source.sizes, None))
        self._unused = min([*source.sizes, self._tokens // 2])
        self._made = source.make(out, self._tokens + NEW, own)
        self._text = _text(self._made, self._tokens, seed)
        self.request = {
            "model": str(self._made.path.absolute()),
            "text": self._text,
            "logprobs": True,
            "generate": [[prompt, NEW] for prompt in _prompts(asked, self._tokens)],
            "options": {"room": NEW, **source.options},
        }
        """What `run_engine` takes."""

    def judge(self, result: dict[str, Any]) -> EngineProof:
        """Compare the engine's result with every candidate.

        Raises:
            ExportError: if the result is an error.
        """
        checked(self._engine, result)
        made, text = self._made, self._text
        reference = Reference(made.values, made.state, self._where, made.prepare)
        found = torch.tensor(result["logprobs"])
        index = torch.tensor(text[1:])[:, None]

        def error(other: Schedule) -> float:
            row = reference.logprobs(text, other)[:-1].gather(1, index)[:, 0]
            return float((row - found).abs().nan_to_num(torch.inf).max())

        compared = compare(candidates(self._asked, self._unused), error)
        equal, cache_error = _compare_generated(reference, self._asked, text, result["generated"])
        return EngineProof(
            engine=self._engine,
            version=result["version"],
            architecture=str(made.values["model_type"]),
            schedule=str(self._asked),
            tokens=self._tokens,
            weights=made.weights,
            **compared._asdict(),
            generated=sum(len(one["tokens"]) for one in result["generated"]),
            equal=equal,
            cache_error=cache_error,
        )


def _text(made: EngineModel, tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(made.vocab_size, (tokens,), generator=generator).tolist()


def _prompts(schedule: Schedule, tokens: int) -> list[int]:
    """Return lengths of prompts in tokens: one whose continuation crosses each window's edge, and one past them all."""
    sizes = {span.size for span in schedule if span.size is not None}
    return sorted({max(1, size - NEW // 2) for size in sizes} | {tokens})


def _compare_generated(
    reference: Reference, schedule: Schedule, text: Sequence[int], generated: Sequence[dict[str, Any]]
) -> tuple[int, float]:
    """Return how many tokens the reference chooses too, and the largest difference of their log-probabilities."""
    equal, worst = 0, 0.0
    for one in generated:
        prompt, tokens = one["prompt"], one["tokens"]
        rows = reference.logprobs([*text[:prompt], *tokens], schedule)[prompt - 1 : -1]
        own = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        worst = max(worst, float((own - torch.tensor(one["logprobs"])).abs().nan_to_num(torch.inf).max()))
        # Two tokens that are equally likely may be told apart by rounding.
        equal += int((own >= rows.amax(-1) - CACHE_TOLERANCE).sum())
    return equal, worst

"""Run exported models in real engines, and record which schedule each one ran.

    make test-engines                                   # installs the engines in .engines, then runs this: 15 minutes
    python analysis/engines/executed.py mlx llama.cpp   # some engines only; the others' entries stay
    python analysis/engines/executed.py vllm --family olmo3

`layersearch verify-export --engine` makes each entry of executed.json. Exit code 1: an engine
ran another schedule than its entry's, or did not run it at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from layersearch.config.model import ModelConfig
from layersearch.errors import LayersearchError
from layersearch.export import FAMILIES, export, export_model, read_source
from layersearch.export.engines import SERVING_FAMILIES
from layersearch.export.verify.engines import ENVIRONMENTS, EngineProof, Experiment
from layersearch.export.verify.engines.environments import find_python, run_engine
from layersearch.export.verify.engines.loading import engine_model
from layersearch.schedule import Schedule

RECORD = Path(__file__).with_name("executed.json")
SCHEDULE = "full window:16*2 full window:16 full"
SPECIAL = {
    ("hf", "llama4"): SCHEDULE.replace("window", "block"),
    ("vllm", "gpt_oss"): "window:16 full window:16 full window:16 full",  # its pattern is hard-coded
    ("mlx", "gemma3"): "window:16*2 full window:16*2 full",  # periods only
}
MLX = ("llama", "mistral", "ministral", "ministral3", "smollm3", "olmo3", "exaone4", "gemma3")
LITGPT = ("llama", "mistral", "ministral", "qwen2", "qwen3")
GGUF = ("llama", "mistral", "ministral", "granite_swa", "olmo3", "gemma3")
TIED = ("gemma2", "cohere2")  # vLLM starts them with no output embeddings of their own
SIZE = ModelConfig(n_layers=6, d_model=128, n_heads=4, n_kv_heads=2, d_ff=256, tie_embeddings=False)


class Job(NamedTuple):
    """One export and the engine that runs it."""

    engine: str
    target: str
    family: str

    @property
    def schedule(self) -> Schedule:
        """The schedule that is exported."""
        return Schedule.parse(SPECIAL.get((self.target, self.family), SCHEDULE))


def jobs() -> Iterator[Job]:
    """Yield every job."""
    for family in FAMILIES:
        yield Job("hf", "hf", family)
    yield from (Job("mlx", "mlx", family) for family in MLX)
    yield from (Job("llama.cpp", "gguf", family) for family in GGUF)
    yield from (Job("litgpt", "litgpt", family) for family in LITGPT)
    yield Job("vllm", "hf", "granite_swa")
    for family, serving in SERVING_FAMILIES["vllm"].items():
        if serving.unsupported is None:
            yield Job("vllm", "vllm", family)


def source(family: str, out: Path) -> Path:
    """Save a small model with random weights and without windows, as a user's own would be; return its folder."""
    import torch
    import transformers

    kind = FAMILIES[family].model_type if family in FAMILIES else family
    # Ministral 3's own RoPE is YaRN, which the narrow model has no use for.
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}} if kind == "ministral3" else {}
    config: Any = transformers.AutoConfig.for_model(
        kind,
        **plain,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=SIZE.n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        attention_multiplier=32**-0.5,
        vocab_size=256,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, (1.5 if "q_proj" in name or "k_proj" in name else 1) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(out)
    return out


def prepare(job: Job, folder: Path) -> Experiment:
    """Export a model, and return its experiment."""
    out, size = folder / "exported", SIZE
    served = None
    if job.target == "vllm":
        size = dataclasses.replace(size, tie_embeddings=job.family in TIED)
        export(job.schedule, "vllm", model=size, vocab_size=256, seq_len=512, out=out, family=job.family)
        served = folder / "served"
        full = Schedule.parse(f"full*{size.n_layers}")
        if job.family in FAMILIES:
            export(full, "hf", model=size, vocab_size=256, seq_len=512, out=served, family=job.family)
        else:
            source(job.family, served)
    elif (job.engine, job.target) == ("hf", "hf"):
        size = size if FAMILIES[job.family].gqa else ModelConfig(**{**vars(size), "n_kv_heads": 4})
        export(job.schedule, "hf", model=size, vocab_size=256, seq_len=512, out=out, family=job.family)
    elif job.target == "hf":
        export_model(job.schedule, "hf", read_source(str(source("llama", folder / "m"))), out=out, family=job.family)
    else:
        export_model(job.schedule, job.target, read_source(str(source(job.family, folder / "m"))), out=out)
    asked, found = engine_model(out, job.engine, None, served)
    return Experiment(job.engine, asked, found, str(out), folder / "model")


def entry_of(proof: EngineProof) -> dict[str, Any]:
    """Return what is recorded of a proof."""
    return {
        "version": proof.version,
        "schedule": proof.schedule,
        "weights": proof.weights,
        "tokens": proof.tokens,
        "ran": proof.nearest.schedule,
        "error": float(f"{proof.asked.error:.1e}"),
        "next": proof.next_nearest.name,
        "next_error": float(f"{proof.next_nearest.error:.1e}"),
        "tried": proof.tried,
        "generated": proof.generated,
        "equal": proof.equal,
        "cache_error": float(f"{proof.cache_error:.1e}"),
        "verdict": proof.problem or "proven",
    }


def run(todo: list[Job], folder: Path) -> dict[Job, dict[str, Any]]:
    """Export the jobs of one engine, run them in one process of it, and return their entries."""
    experiments: dict[Job, Experiment] = {}
    entries: dict[Job, dict[str, Any]] = {}
    for number, job in enumerate(todo):
        try:
            experiments[job] = prepare(job, folder / str(number))
        except LayersearchError as error:
            entries[job] = {"schedule": str(job.schedule), "verdict": str(error)}
    engine = todo[0].engine
    requests = [experiment.request for experiment in experiments.values()]
    for (job, experiment), result in zip(
        experiments.items(), run_engine(engine, find_python(engine), requests, seconds=7200), strict=True
    ):
        try:
            entries[job] = entry_of(experiment.judge(result))
        except LayersearchError as error:
            entries[job] = {"schedule": str(job.schedule), "verdict": str(error)}
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=list(ENVIRONMENTS), help="(default: %(default)s)")
    parser.add_argument("--family", nargs="+", help="these families only")
    options = parser.parse_args()
    wrong = 0
    for engine in options.engines:
        todo = [job for job in jobs() if job.engine == engine and (not options.family or job.family in options.family)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            entries = run(todo, Path(folder))
        found = {Job(*(entry[key] for key in Job._fields)): entry for entry in json.loads(RECORD.read_text())}
        for job, entry in entries.items():
            entry["verdict"] = entry["verdict"].replace(folder, "DIR")
            wrong += entry["verdict"] != "proven"
            found[job] = {**job._asdict(), "date": datetime.date.today().isoformat(), **entry}
            print(f"{job.engine} --to {job.target} {job.family}: {entry['verdict']}", flush=True)
        ordered = [found[job] for job in jobs() if job in found]
        RECORD.write_text(json.dumps(ordered, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

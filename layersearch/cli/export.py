"""Write a schedule, alone or with a model, in the form that other software loads."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.cli.flags import add_card, add_shared, print_files
from layersearch.errors import ExportError, LayersearchError

if TYPE_CHECKING:
    from layersearch.config.recipe import Recipe
    from layersearch.export.card import CardFacts
    from layersearch.schedule import Schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "run folder, converted model, winner.yaml, or schedule such as 'full window:32*3'"
    add("schedule", metavar="RUN|SCHEDULE", help=text)
    add(
        "--to",
        required=True,
        metavar="TARGET",
        help="hf, hf-remote, mlx, gguf, vllm, sglang, tensorrt-llm, megatron, litgpt, torchtitan, flash-attn, flex, "
        "yaml or json",
    )
    add("--family", help="hf, mlx, vllm, sglang, tensorrt-llm: the model family, for example granite_swa or modernbert")
    add("--recipe", help="take the model's size from this recipe (default: the run's)")
    text = (
        "hf, hf-remote, mlx, gguf, litgpt: a model of yours; its folder, GGUF file or hub id brings its weights and "
        "tokenizer, its config.json alone does not (default: the run's model)"
    )
    add("--model", "--config", metavar="PATH|ID", dest="model", help=text)
    text = "the stack of a T5Gemma --model that the schedule is of (default: the run's, or encoder)"
    add("--stack", choices=("encoder", "decoder"), help=text)
    add("--out", type=Path, required=True, help="the folder to write")
    add_card(parser)
    add_shared(parser, "--json")


@dataclass(kw_only=True)
class _Asked:
    """What the first argument names."""

    schedule: Schedule
    evidence: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    vocab_size: int | None = None
    model: str | None = None
    """The pre-trained model that the schedule is of."""


def run(options: argparse.Namespace) -> None:
    """Write the files and print their paths."""
    from layersearch.config.recipe import load_recipe
    from layersearch.export import check_target
    from layersearch.export.capabilities import UnsupportedSchedule

    recipe = load_recipe(options.recipe) if options.recipe else None
    if options.model is not None and recipe is not None:
        raise ExportError("--model has the model's size already; drop --recipe")
    check_target(options.to)
    card = options.card or options.push is not None
    if card:
        _check_card(options)
    asked = _read(options, recipe)
    facts = _facts(options, asked) if card else None
    try:
        paths, note = _write(options, asked)
    except UnsupportedSchedule as error:
        model = options.model or asked.model
        size = ["--model", model] if model else ["--recipe", options.recipe] if options.recipe else None
        if size is None:
            raise
        family = ["--family", options.family] if options.family else []
        words = ["layersearch", "export", str(error.nearest), "--to", options.to, *family, *size, "--out", options.out]
        raise ExportError(f"{error}; export it with: {shlex.join(map(str, words))}") from None
    if facts is not None:
        from layersearch.cli.model_card import publish

        address = publish(asked.schedule, options.to, options.out, facts, options.push, [path.name for path in paths])
        paths = [*paths, options.out / "README.md"]
        note = "; ".join(filter(None, (note, address and f"uploaded: {address}"))) or None
    print_files(paths, options.json, note)


def _check_card(options: argparse.Namespace) -> None:
    """Refuse a card that could not be written, before anything is."""
    from layersearch.export.card import check_card
    from layersearch.export.folder import MODEL_TARGETS
    from layersearch.export.hub_upload import check_repository

    if options.to not in MODEL_TARGETS:
        raise ExportError(
            f"--card and --push are for --to {', '.join(MODEL_TARGETS)}, not for --to {options.to}; drop them"
        )
    if options.push is not None:
        check_repository(options.push)
    check_card(options.out)


def _facts(options: argparse.Namespace, asked: _Asked) -> CardFacts:
    """Return what the run or the conversion that the first argument names measured of the model that is written."""
    from layersearch.export.card import CardFacts
    from layersearch.report.card_facts import conversion_facts, run_facts

    model = options.model or asked.model
    if not os.path.isdir(options.schedule):
        return CardFacts(base=model)
    folder = Path(options.schedule)
    conversion = next((path for path in (folder, folder.parent) if (path / "convert.json").is_file()), None)
    if conversion is not None:
        facts = conversion_facts(conversion)
    elif (folder / "config.json").is_file() and (folder / "trials.jsonl").is_file():
        facts = run_facts(folder)
    else:
        return CardFacts(base=model)
    if options.model is not None and options.model != facts.base:  # another model than the one that was measured
        return replace(facts, measures=(), positions=(), base=options.model)
    return facts


def _read(options: argparse.Namespace, recipe: Recipe | None) -> _Asked:
    """Return what the first argument names; ``recipe`` is the one that the user named."""
    from layersearch.schedule.files import schedule_argument

    # os.path.isdir, not Path.is_dir, which raises where a schedule is longer than a file's name
    if not os.path.isdir(options.schedule):
        try:
            return _Asked(schedule=schedule_argument(options.schedule), recipe=recipe)
        except LayersearchError as error:
            raise ExportError(f"no run folder {options.schedule!r}, and no schedule: {error}") from None
    folder = Path(options.schedule)
    for model in (folder, folder / "model"):
        if (model / "schedule.yaml").is_file() and not (model / "trials.jsonl").exists():
            return _converted(model, recipe)
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe
    from layersearch.results.sentences import winner_evidence
    from layersearch.study.run_folder import read_config
    from layersearch.study.saved_run import load_result

    config, result = read_config(folder), load_result(folder)
    if result.winner is None:
        raise ExportError(f"{folder}: no winner yet ({result.verdict}); run the same command again to continue")
    own = build(Recipe, config["recipe"], f"{folder / 'config.json'}: recipe")
    return _Asked(
        schedule=result.winner.schedule,
        evidence=winner_evidence(result),
        recipe=recipe or own,
        vocab_size=config["data"]["vocab_size"],
        model=own.pretrained if recipe is None else None,
    )


def _converted(model: Path, recipe: Recipe | None) -> _Asked:
    """Return the schedule and the evidence of a converted model's folder."""
    from layersearch.config.loader import read_yaml
    from layersearch.schedule.files import read_schedule

    file = model / "schedule.yaml"
    held = read_yaml(file)
    evidence = held.get("evidence") if isinstance(held, dict) else None
    return _Asked(
        schedule=read_schedule(file),
        evidence=evidence or {},
        recipe=recipe,
        model=str(model) if recipe is None and (model / "config.json").is_file() else None,
    )


def _write(options: argparse.Namespace, asked: _Asked) -> tuple[list[Path], str | None]:
    """Write the files; return their paths and a note."""
    from layersearch.data import open_of
    from layersearch.export import export
    from layersearch.export.encoders import default_encoder, find_encoder, usage
    from layersearch.export.encoders.decoders import both_schedules
    from layersearch.export.families import WITH_SINKS, default_family
    from layersearch.export.folder import MODEL_TARGETS

    recipe, name, family = asked.recipe, options.model or asked.model, options.family
    if options.model is not None and options.to not in MODEL_TARGETS:
        raise ExportError(f"--model is for --to {', '.join(MODEL_TARGETS)}, not for --to {options.to}; drop it")
    if name is not None and options.to in MODEL_TARGETS:
        return _write_model(options, asked, name)
    _check_no_stack(options)
    if recipe is None:
        raise ExportError(
            "--recipe is missing: a schedule alone has no model size; name a recipe, give --model, or export a run"
        )
    note = None
    if options.to == "hf" and recipe.model.kind != "decoder":
        two = recipe.model.kind == "encoder_decoder"
        encoder = default_encoder(two) if family is None else find_encoder(family)
        own = "no weights: the family's norms and feed-forward layers are its own"
        schedule, _ = both_schedules(asked.schedule, recipe.model)
        more = usage(schedule, encoder, recipe.training.seq_len)
        note = "; ".join(filter(None, (f"family {encoder.name}", own, more)))
    elif options.to == "hf" and family is None:
        family = default_family(recipe.model.qk_norm)
        note = f"family {family}"
        if family == WITH_SINKS:
            note += ", which transformers, vLLM and llama.cpp run; --family ministral has SDPA in transformers"
    paths = export(
        asked.schedule,
        options.to,
        model=recipe.model,
        vocab_size=asked.vocab_size or open_of(recipe).vocab_size,
        seq_len=recipe.training.seq_len,
        out=options.out,
        family=family or _served(asked, options.to),
        evidence=asked.evidence,
    )
    return paths, note


def _write_model(options: argparse.Namespace, asked: _Asked, name: str) -> tuple[list[Path], str | None]:
    """Write a model with its weights, or a ``config.json`` of the user's."""
    from layersearch.data.gguf_file import is_gguf
    from layersearch.export import SourceModel, export_model, read_source
    from layersearch.export.edit_config import read_user_config, write_user_config
    from layersearch.export.encoders import edit_encoder

    path = Path(name)
    is_file, user = os.path.isfile(name) and not is_gguf(name), None
    if (encoder := _encoder_values(path)) is not None:
        if options.to != "hf":
            raise ExportError(f"--to {options.to} is for decoders, and {name} is an encoder; give --to hf")
        searched = "encoder" if asked.recipe is None else asked.recipe.model.searched or "encoder"
        stack = options.stack or searched
        return edit_encoder(
            asked.schedule,
            encoder,
            path,
            out=options.out,
            family=options.family,
            stack=stack,
            evidence=asked.evidence,
        )
    _check_no_stack(options)
    if options.model is not None and options.to == "hf" and (is_file or os.path.isdir(name)):
        # The user's own file is edited, so that its other keys keep their values.
        held = path.is_dir() and (any(path.glob("*.safetensors")) or any(path.glob("*.bin")))
        user = read_user_config(path, options.family, weights=held)
        if not held or user.nested:
            return write_user_config(asked.schedule, user, out=options.out, evidence=asked.evidence)
    try:
        if options.to == "gguf" and is_gguf(name):  # its weights stay as they are stored: transformers is not asked
            source = SourceModel(name=name, values={}, gguf=path)
        elif is_file:  # whatever its name, and whatever lies beside it
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(path, Path(folder, "config.json"))
                source = replace(read_source(folder), name=name, tensors=None, tokenizer=None)
        else:
            source = read_source(name)
    except LayersearchError as error:
        if options.model is not None or asked.model == options.schedule:
            raise
        raise ExportError(
            f"{options.schedule} is of {name}, which is needed ({error}); give --model with the path where it lies now"
        ) from None
    return export_model(
        asked.schedule,
        options.to,
        source,
        out=options.out,
        family=options.family,
        evidence=asked.evidence,
        seq_len=asked.recipe.training.seq_len if asked.recipe is not None else None,
        user=user,
    )


def _check_no_stack(options: argparse.Namespace) -> None:
    if options.stack is not None:
        raise ExportError(f"--stack {options.stack} is for a --model with two stacks, of --to hf; drop it")


def _encoder_values(path: Path) -> dict[str, Any] | None:
    """Return the ``config.json`` of a path, if it is an encoder's."""
    from layersearch.export.encoders import is_encoder_file
    from layersearch.files import parse_json

    file = path / "config.json" if os.path.isdir(path) else path
    try:
        values = parse_json(file.read_bytes()) if file.suffix == ".json" else None
    except (OSError, ValueError):  # what reads it says what is wrong
        return None
    return values if isinstance(values, dict) and is_encoder_file(values) else None


def _served(asked: _Asked, target: str) -> str | None:
    """Return the family that a serving engine gets where none is named: that of the run's own model, if any."""
    from layersearch.export.engines import SERVING_FAMILIES

    if asked.model is None or target not in SERVING_FAMILIES:
        return None
    from layersearch.model.pretrained import load_config  # torch, which no other export of a schedule needs

    return str(load_config(asked.model).model_type).removesuffix("_text")

"""Write a commented recipe and search space for your own model and data, from flags or three questions."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from layersearch.cli.flags import add_shared, positive, print_files
from layersearch.errors import ConfigError

BUDGET = 0.27
_QUESTIONS = {
    "model": "Pre-trained model: a Hugging Face folder, hub id or GGUF file; empty: small models trained from scratch",
    "data": "Text: files or folders, hub:ID, or empty for the source files of Python's standard library",
    "budget": f"Largest attention cost, as a share of full attention in every layer; empty: {BUDGET}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "folder",
        type=Path,
        metavar="DIR",
        help="gets recipe.yaml, space.yaml and their schemas; nothing is overwritten",
    )
    add("--model", metavar="PATH|ID", help="choose for this model without training (default: train small models)")
    add("--budget", type=float, help=f"largest attention cost, as a share of all-full (default: {BUDGET})")
    add("--seq-len", type=positive, metavar="T", help="tokens of a text (default: 256; with --model 1024, or its most)")
    add_shared(parser, "--data", "--json")


def run(options: argparse.Namespace) -> None:
    """Write the files, print their paths, and the command that uses them."""
    from layersearch.config.recipe import load_recipe
    from layersearch.files import write_text
    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.schedule.space import load_space

    folder: Path = options.folder
    paths = [folder / name for name in ("recipe.yaml", "space.yaml", "schemas/recipe.json", "schemas/space.json")]
    _check_free(folder, paths)
    _ask(options)
    budget = BUDGET if options.budget is None else options.budget
    words = ["layersearch", "run", *(["--model", options.model] if options.model else [])]
    command = shlex.join([*words, "--recipe", str(paths[0]), "--space", str(paths[1])])
    if not command.isprintable():
        raise ConfigError("DIR or --model holds a control character, which no line of a file can; rename it")
    texts = _texts(options, budget, command)
    try:
        paths[2].parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            write_text(path, text)
        recipe, space = load_recipe(str(paths[0])), load_space(str(paths[1]))
        BoundSpace.of(space, recipe).check_budget(budget)
    except ConfigError:  # what was written does not load: leave nothing behind
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    print_files(paths, options.json, f"see the plan with: {command} --dry-run")


def _check_free(folder: Path, paths: list[Path]) -> None:
    """Refuse a folder where a file would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file stands there; name a folder")
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already and is not overwritten; name another folder, or remove it")


def _ask(options: argparse.Namespace) -> None:
    """Ask for what no flag gives, if there is a terminal to ask on."""
    if not sys.stdin.isatty():
        if not options.data:
            raise ConfigError(
                "--data is missing, and standard input is no terminal to ask on: give files, folders or stdlib"
            )
        return
    for name, question in _QUESTIONS.items():
        if getattr(options, name) is not None:
            continue
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        said = sys.stdin.readline().strip()
        if name == "data":
            try:
                options.data = shlex.split(said) or ["stdlib"]
            except ValueError:
                raise ConfigError(f"data {said!r}: a quotation mark is not closed; start again") from None
        elif name == "model":
            options.model = said or None
        elif said:
            try:
                options.budget = float(said)
            except ValueError:
                raise ConfigError(f"budget must be a number such as {BUDGET}, not {said!r}; start again") from None


def _texts(options: argparse.Namespace, budget: float, command: str) -> list[str]:
    """Return the content of the recipe, the space and their schemas."""
    from layersearch.cli.flags import data_overrides
    from layersearch.cli.schemas import schema
    from layersearch.config.loader import override
    from layersearch.schedule.space import check_budget_range

    check_budget_range(budget)
    overrides = data_overrides(options.data)
    held: dict[str, Any] = {"data": {}}
    for assignment in overrides:
        override(held, assignment)
    name = re.sub(r"[^\w.-]+", "-", options.folder.resolve().name) or "own"
    if options.model:
        recipe, space = _for_model(options, held["data"], overrides)
    else:
        recipe, space = _from_scratch(options.seq_len or 256, held["data"])
    texts = []
    for kind, text in (("recipe", recipe), ("space", space)):
        head = f"# {command}\n# yaml-language-server: $schema=schemas/{kind}.json\nname: {json.dumps(name)}\n"
        texts.append(head + text)
    texts[1] += (
        f"# Largest attention cost of a schedule, as a share of full attention in every layer.\nbudget: {budget:g}\n"
    )
    return [*texts, *(json.dumps(schema(kind), indent=1) + "\n" for kind in ("recipe", "space"))]


def _flow(mapping: dict[str, Any]) -> str:
    """Return a mapping on one line of YAML."""
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in mapping.items()) + "}"


_DATA = (
    "# The text. Paths are relative to the folder in which the command runs. Other keys: docs/reference/recipe.md.\n"
)


def _for_model(options: argparse.Namespace, data: dict[str, Any], overrides: list[str]) -> tuple[str, str]:
    """Return the recipe and the space of a selection on a pre-trained model, whose configuration is read."""
    import dataclasses

    from layersearch.config.recipe import load_recipe
    from layersearch.model.pretrained import load_config
    from layersearch.model.pretrained_recipe import recipe_for
    from layersearch.study.selection_plan import default_space

    most = getattr(load_config(options.model), "max_position_embeddings", None) or 1024
    seq_len = options.seq_len or min(1024, most)
    recipe = recipe_for(load_recipe("pretrained", [f"training.seq_len={seq_len}", *overrides]), options.model)
    model = dataclasses.asdict(recipe.model)
    sizes = {key: model[key] for key in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")}
    if recipe.model.head_width:
        sizes["head_width"] = recipe.model.head_width
    space = default_space(seq_len)
    choices = "".join(f"  - {choice}\n" for choice in space.choices)
    return (
        f"# Sizes of the model. --model fills them in again, so another model of a family can use this file.\n"
        f"model: {_flow(sizes)}\n"
        f"{_DATA}data: {_flow(data)}\n"
        "training:\n"
        f"  seq_len: {seq_len}  # tokens of a text; take the length that the model will serve, if you can\n"
        "  batch_size: 1  # this and the next two are for recipes that train; a selection trains no weights\n"
        "  steps: 1\n"
        "  learning_rate: 0.0002\n"
        "  gpus: 0  # 1: run on a GPU\n"
        "selection:\n"
        "  retrieval_weight: 0.2  # share of retrieval in the loss of a schedule; 0: text alone\n"
        "  selection_units: 6  # texts on which schedules are compared during the search\n"
        "  confirm_units: 12  # held-out texts that decide; more make the intervals narrower\n"
        "  candidates: 32  # schedules that the search measures\n",
        "# Spans that each layer may have. Windows are in tokens. The 4 first tokens stay visible (+sink:4):\n"
        "# without them a pre-trained model loses much more.\n"
        f"choices:\n{choices}"
        "# The sparse span of the named placements that the winner is compared with.\n"
        f"baseline_span: {space.baseline_span}\n",
    )


def _from_scratch(seq_len: int, data: dict[str, Any]) -> tuple[str, str]:
    """Return the recipe and the space of a search with small models, with the settings of the recipe ``text``."""
    from layersearch.config.loader import find_file, read_yaml

    shipped = read_yaml(find_file("text", "trials"))
    training = {**shipped["training"], "seq_len": seq_len}
    notes = {
        "seq_len": "tokens of a sequence",
        "batch_size": "sequences in an optimizer step",
        "steps": "optimizer steps of a trial; more make the losses of schedules easier to tell apart",
        "val_sequences": "sequences of the validation set",
    }
    lines = "".join(
        f"  {key}: {json.dumps(value)}" + (f"  # {notes[key]}\n" if key in notes else "\n")
        for key, value in training.items()
    )
    windows = list(dict.fromkeys(max(1, seq_len // share) for share in (128, 64, 32)))
    choices = "".join(f"  - window:{size}\n" for size in windows)
    return (
        "# The small model that is trained anew for each schedule.\n"
        f"model: {_flow(shipped['model'])}\n"
        f"{_DATA}data: {_flow({**data, 'vocab_size': shipped['data']['vocab_size']})}\n"
        f"training:\n{lines}"
        "search:\n"
        "  trials: 20  # distinct schedules that are trained, baselines included\n"
        "  rungs: [0.5]  # shares of the steps at which hopeless trials end\n"
        "  finalists: 2  # schedules that are confirmed on fresh seeds, beside the baselines\n"
        "  confirm_seeds: 3  # fresh seeds; more make the intervals narrower\n"
        "  workers: 2  # trials side by side\n",
        "# Spans that each layer may have, in tokens. Windows this short make the placement of full layers matter\n"
        "# within minutes of training; wider ones need more steps before schedules differ by more than noise.\n"
        f"choices:\n  - full\n{choices}"
        "# The sparse span of the named placements that the winner is compared with.\n"
        f"baseline_span: window:{windows[0]}\n",
    )

"""Write the reference pages from the code: flags from the argument parser, keys from the config dataclasses.

    python docs/generate_reference.py

A test compares the committed pages with the code, so the reference cannot fall behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import layersearch
import layersearch.config.field_docs
from layersearch.cli.main import build_parser
from layersearch.cli.schemas import NAMES, schema
from layersearch.convert.config import ConvertRecipe
from layersearch.data import TASKS
from layersearch.export import FAMILIES, TARGETS
from layersearch.export.encoders import ENCODERS
from layersearch.export.engines import ENGINES
from layersearch.export.verify import EncoderProof, Proof
from layersearch.export.verify.engines import EngineProof
from layersearch.export.verify.engines.bench import Timing
from layersearch.optimal_l.answer import OptimalL
from layersearch.optimal_l.plan import SettingPlan
from layersearch.schedule.presets import PRESETS
from layersearch.study.estimate import Estimate
from layersearch.study.model_evaluation import ModelEvaluation
from layersearch.study.selection_plan import SelectionPlan
from layersearch.study.transfer import RunTransfer
from layersearch.surrogate.solve import Solution
from layersearch.training.record import TrialRecord

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate_reference.py. Change the code, then run `make docs-reference`. -->\n"


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, in Markdown."""
    return {name: plain(text) for name, text in layersearch.config.field_docs.field_docs(cls).items()}


def plain(text: str) -> str:
    """Return a docstring on one line, in Markdown."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def type_name(hint: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in literals(args))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {type_name(args[0])}"
        return f"[{', '.join(type_name(arg) for arg in args)}]"
    if origin in (dict, Mapping):
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}"
    names = {
        layersearch.Schedule: "schedule text",
        int: "integer",
        float: "number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def literals(args: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the values of a Literal, those of nested ones included."""
    for arg in args:
        if typing.get_origin(arg) is Literal:
            yield from literals(typing.get_args(arg))
        else:
            yield arg


def default_text(field: dataclasses.Field[Any]) -> str:
    """Return the default as YAML writes it, or ``required``."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "" if dataclasses.is_dataclass(made) else f"`{made!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    spelled = {None: "null", True: "true", False: "false"}
    return f"`{spelled[value] if value is None or isinstance(value, bool) else value}`"


def parts_of(hint: Any) -> Iterator[type]:
    """Yield the dataclasses that a type names, without `Schedule`: files hold its text form."""
    if dataclasses.is_dataclass(hint) and hint is not layersearch.Schedule:
        yield typing.cast(type, hint)
    for arg in typing.get_args(hint):
        yield from parts_of(arg)


def keys_table(cls: type, prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    """Return the table of a dataclass's keys, without those that are sections of their own."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in skip:
            columns = (f"`{prefix}{field.name}`", type_name(hints[field.name]), default_text(field))
            rows.append(f"| {' | '.join(columns)} | {docs.get(field.name, '')} |")
    return "\n".join(rows) + "\n"


def sections(cls: type, known: Mapping[type, str] = types.MappingProxyType({})) -> str:
    """Return the tables of a configuration: its own keys first, then each nested section's.

    Args:
        cls: the dataclass of the whole file.
        known: sections that another page describes, with the sentence that links to it.
    """
    hints = typing.get_type_hints(cls)
    nested = {name: part for name, hint in hints.items() for part in parts_of(hint)}
    text = keys_table(cls, skip=tuple(name for name in nested if dataclasses.is_dataclass(hints[name])))
    for name, part in nested.items():
        listed = not dataclasses.is_dataclass(hints[name]) and typing.get_origin(hints[name]) is tuple
        text += f"\n## `{name}`\n\n"
        text += known[part] if part in known else f"{first_sentence(part)}\n\n"
        text += "\n" if part in known else keys_table(part, f"{name}[]." if listed else f"{name}.")
    return text


def first_sentence(thing: Any) -> str:
    """Return the first paragraph of a docstring."""
    return plain((inspect.getdoc(thing) or "").split("\n\n")[0])


def records(cls: type, seen: set[type]) -> str:
    """Return the tables of a dataclass that is written as JSON, and of those that it holds."""
    seen.add(cls)
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    text = f"\n## `{cls.__name__}`\n\n{first_sentence(cls)}\n\n| field | type | meaning |\n|---|---|---|\n"
    for field in dataclasses.fields(cls):
        text += f"| `{field.name}` | {type_name(hints[field.name])} | {docs.get(field.name, '')} |\n"
    for hint in hints.values():
        for part in parts_of(hint):
            if part not in seen:
                text += records(part, seen)
    return text


def cli_page() -> str:
    """Return every command with its arguments and flags."""
    text = "# Commands and flags\n\n`layersearch COMMAND --help` prints the same. "
    text += "An error is one line that names the flag or key and the remedy; the exit code is then 2.\n"
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        text += f"\n## `layersearch {name}`\n\n{command.description}\n\n"
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
            if action.choices:
                value = "{" + ",".join(map(str, action.choices)) + "}"
            shown = " ".join([*action.option_strings, *([str(value)] if action.nargs != 0 else [])])
            needed = ", required" if action.required and action.option_strings else ""
            many = {"+": ", one or more", "*": ", any number", "?": ", optional"}.get(str(action.nargs), "")
            repeated = ", may be repeated" if action.option_strings == ["--set"] else ""
            described = (action.help or "") % {**vars(action), "prog": command.prog}
            text += f"- `{shown}`{needed}{many}{repeated}: {described}\n"
        for group in command._mutually_exclusive_groups:
            flags = ", ".join(f"`{action.option_strings[0]}`" for action in group._group_actions)
            text += f"\n{'Exactly' if group.required else 'At most'} one of {flags}.\n"
    return text


def recipe_page() -> str:
    """Return the keys of a recipe."""
    return (
        "# Recipe keys\n\nA recipe is a YAML file. It sets the proxy model, its data, its training and the search. "
        "`--set training.steps=400` changes one key. Unknown keys, wrong types and values out of range are refused by "
        "name. One multiply-add counts as one FLOP wherever FLOPs are printed.\n\n" + sections(layersearch.Recipe)
    )


def space_page() -> str:
    """Return the keys of a search space."""
    return (
        "# Search space keys\n\nA search space is a YAML file: which spans each layer may have. A choice is a "
        "[term](../concepts.md#schedule) such as `window:32+sink:4`, or a mapping of a span's fields. Its lists "
        "multiply out: `{kind: window, size: [16, 32], sink: [0, 4]}` is four choices.\n\n"
        + sections(layersearch.Space)
        + "\n## Fields of a span\n\n"
        + keys_table(layersearch.Span)
    )


def conversion_page() -> str:
    """Return the keys of a conversion's recipe."""
    hints = typing.get_type_hints(layersearch.Recipe)
    link = {hints[key]: f"The same keys as [`{key}` of a recipe](recipe.md#{key}).\n" for key in ("data", "training")}
    return (
        "# Conversion recipe keys\n\n`layersearch convert --recipe` takes a YAML file with these keys, or a name from "
        "`trials/convert/`.\n\n" + sections(ConvertRecipe, link)
    )


def records_page() -> str:
    """Return the fields of trials.jsonl and frontier.json."""
    seen: set[type] = set()
    return (
        "# Fields of the records\n\n`trials.jsonl` in a run folder holds one `TrialRecord` per line, with its checksum "
        "in the field `crc32`: the CRC-32 of the other fields as JSON, keys sorted, without spaces. `frontier.json` "
        "holds one `Result`, which holds the others. Losses are in nats.\n"
        + records(TrialRecord, seen)
        + records(layersearch.Result, seen)
    )


RECORD = DOCS.parent / "analysis" / "engines" / "executed.json"
REAL_MODEL = RECORD.with_name("smollm2.json")
TITLES = {"hf": "transformers", "mlx": "MLX-LM", "llama.cpp": "llama.cpp", "litgpt": "LitGPT", "vllm": "vLLM"}


def executed(record: Path = RECORD) -> list[dict[str, Any]]:
    """Return the exports that ran in engines and were proven there, as `analysis/engines` recorded them."""
    return [entry for entry in json.loads(record.read_text(encoding="utf-8")) if entry["verdict"] == "proven"]


def executed_in(target: str) -> str:
    """Return the engines in which a target's exports ran, with releases, dates and families; empty: none did."""
    parts = []
    for engine, title in TITLES.items():
        mine = [entry for entry in executed() if (entry["target"], entry["engine"]) == (target, engine)]
        if mine:
            release = mine[0]["version"].split()[1]
            count = f"{len(mine)} families" if len(mine) > 1 else mine[0]["family"]
            parts.append(f"{title} {release}, {count}, {max(entry['date'] for entry in mine)}")
    return "; ".join(parts)


def guide() -> str:
    """Return the export guide, whose last column of targets comes from the record."""
    lines = (DOCS / "how-to" / "export.md").read_text(encoding="utf-8").splitlines(keepends=True)
    for index, line in enumerate(lines):
        target = line.split("`")[1] if line.startswith("| `") else ""
        if line.count("|") == 5 and target in TARGETS and (text := executed_in(target)):
            lines[index] = f"{line.rsplit('|', 2)[0]}| {text} |\n"
    return "".join(lines)


def executed_table(entries: list[dict[str, Any]]) -> str:
    """Return exports that ran in engines, one a row."""
    text = "| `--to` | family | engine | schedule that ran | off by | next nearest | tokens with the cache | date |\n"
    text += "|---|---|---|---|---|---|---|---|\n"
    for one in entries:
        release = f"{TITLES[one['engine']]} {one['version'].split()[1]}"
        cells = (f"`{one['target']}`", f"`{one['family']}`", release, f"`{one['ran']}`", f"{one['error']:.0e}")
        rest = (f"{one['next']}, {one['next_error']:.1g}", f"{one['equal']} of {one['generated']}", one["date"])
        text += f"| {' | '.join((*cells, *rest))} |\n"
    return text


def json_keys() -> dict[str, list[str]]:
    """Return the keys that each command prints with ``--json``, on the highest level; of a list: of its members."""

    def fields_of(cls: type, *more: str) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)] + [*more]

    selection = ["held_out", "retrieval_levels", "retrieval_cells", "ranking_agreements"]
    result = ["version", *fields_of(layersearch.Result)]
    files = ["files", "note"]
    sizes = ["seq_len", "n_heads", "head_dim", "n_kv_heads", "bytes_per_value"]
    healed = ["schedule", "cost", "gap", "recovered", "family", "model", "evaluations"]
    return {
        "run": result,
        "run --model": [*result, *selection],
        "run --model --heal": [*result, *selection, "healed"],
        "run --dry-run": fields_of(Estimate),
        "run --model --dry-run": fields_of(SelectionPlan, "memory_bytes"),
        "show": result,
        "confirm": result,
        "transfer": fields_of(RunTransfer),
        "solve": fields_of(Solution, "attention_flops", "confirm_with"),
        "optimal-l": fields_of(OptimalL),
        "optimal-l --dry-run (a list)": fields_of(SettingPlan, "trials"),
        "plot, report, export, init": files,
        "convert": healed,
        "convert --dry-run": ["memory"],
        "verify-export": fields_of(Proof, "proven", "problem"),
        "verify-export of an encoder": fields_of(EncoderProof, "proven", "problem"),
        "verify-export --engine": fields_of(EngineProof, "proven", "problem"),
        "bench-engine (a list)": fields_of(Timing),
        "cost": ["schedule", *sizes, "ratio", "attention_flops", "kv_cache_bytes", "layers"],
        "cost of a model file": [
            *("model", "model_type", "schedule", *sizes, "ratio", "attention_flops", "kv_cache_bytes", "layers")
        ],
        "presets": list(PRESETS),
        "evaluate": fields_of(ModelEvaluation),
        "doctor": [
            *("layersearch", "python", "system", "installed_by_pip"),
            *("libraries", "extras", "devices", "engines", "problems"),
        ],
    }


def json_page() -> str:
    """Return the keys of every command's JSON."""
    text = "# JSON keys\n\n`--json` prints one JSON value on standard output; progress and notes go to standard error. "
    text += (
        "Keys keep their names within a major version; new ones may be added. `schedule` and `presets NAME` print a "
    )
    text += "list with one mapping per layer. The fields of records are described in [Records](records.md).\n\n"
    text += "| command | keys |\n|---|---|\n"
    for command, keys in json_keys().items():
        text += f"| `{command}` | {', '.join(f'`{key}`' for key in keys)} |\n"
    return text


def names_page() -> str:
    """Return the names that flags and keys take: targets, engines, families, tasks, presets."""
    text = (
        "# Export targets, families, tasks and presets\n\n## Export targets (`--to`)\n\n| name | writes |\n|---|---|\n"
    )
    text += "".join(f"| `{name}` | {plain(line)} |\n" for name, line in TARGETS.items())
    text += "\n## Engines\n\n| name | release read | file | window convention |\n|---|---|---|---|\n"
    text += "".join(
        f"| `{name}` | {plain(engine.name)} | `{engine.file}` | {plain(engine.convention)} |\n"
        for name, engine in ENGINES.items()
    )
    text += "\n## Executed in engines\n\n`layersearch verify-export --engine` ran these on a CPU. Differences are the "
    text += "largest of a log-probability, in nats.\n\n" + executed_table(executed())
    text += "\nSmolLM2-135M with its own weights; the schedule is the stock one nearest to the winner of "
    text += "`analysis/smollm2/run`:\n\n" + executed_table(executed(REAL_MODEL))
    text += "\n## Families (`--to hf --family`)\n\n| name | class in transformers |\n|---|---|\n"
    text += "".join(f"| `{name}` | `{family.architecture}` |\n" for name, family in FAMILIES.items())
    text += "\n## Encoders (`--to hf --family`)\n\n| name | class in transformers |\n|---|---|\n"
    text += "".join(f"| `{name}` | `{family.architecture}` |\n" for name, family in ENCODERS.items())
    text += "\n## Generated tasks (`data.source`)\n\n| name | task |\n|---|---|\n"
    text += "".join(f"| `{name}` | {first_sentence(inspect.getmodule(task))} |\n" for name, task in TASKS.items())
    text += "\n## Presets (`layersearch presets`)\n\n| name | parameters | schedule | source |\n|---|---|---|---|\n"
    for name, preset in PRESETS.items():
        text += f"| `{name}` | {', '.join(preset.parameters)} | {plain(preset.summary)} | {preset.source} |\n"
    return text


def api_page() -> str:
    """Return one block of docstrings for each public name."""
    text = "# Python API\n\nEvery name below is imported from `layersearch` itself: `from layersearch import search`.\n"
    for name in sorted(layersearch.__all__, key=str.lower):
        if name.startswith("__"):
            continue
        text += f"\n## `{name}`\n\n::: layersearch.{name}\n"
    return text


PAGES = {
    "reference/cli.md": cli_page,
    "reference/recipe.md": recipe_page,
    "reference/space.md": space_page,
    "reference/conversion.md": conversion_page,
    "reference/records.md": records_page,
    "reference/json.md": json_page,
    "reference/names.md": names_page,
    "reference/api.md": api_page,
}
"""What writes each page, by its path in docs/."""


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its path in docs/."""
    return {path: NOTE + "\n" + write() for path, write in PAGES.items()}


def schemas() -> dict[str, str]:
    """Return the text of each JSON Schema, by its path in docs/."""
    return {f"schemas/{name}.json": json.dumps(schema(name), indent=1) + "\n" for name in NAMES}


if __name__ == "__main__":
    for path, text in schemas().items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(text, encoding="utf-8")
    for path, text in pages().items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(text, encoding="utf-8")
    (DOCS / "how-to" / "export.md").write_text(guide(), encoding="utf-8")

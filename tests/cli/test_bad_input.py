"""What a user can get wrong: one line with the key and the remedy, exit code 2, and nothing on the disk is changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from layersearch.cli.main import main
from layersearch.config.loader import find_file
from layersearch.training.workers import ray_pool

SMOKE = find_file("smoke", "trials").read_text()
SPACE = find_file("smoke", "search_spaces").read_text()
RUN = ["run", "--recipe", "smoke", "--out", "new"]
MILLION = str(2**20)

Arguments = Callable[[Path, Path], list[str]]
"""From an empty folder, which is the working directory, and a finished run: prepare what is wrong, return the line."""
CASES: dict[str, tuple[Arguments, tuple[str, ...]]] = {}


def add(name: str, arguments: Arguments | list[str], *words: str) -> None:
    """Enter one case: its line on standard error holds these words."""
    assert name not in CASES, name
    assert words, name
    fixed = arguments if isinstance(arguments, list) else None
    CASES[name] = ((lambda at, run: fixed) if fixed is not None else arguments, words)  # type: ignore[return-value]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def recipe(name: str, content: str | bytes, *words: str) -> None:
    """Enter a case of a recipe file."""
    add(
        f"recipe: {name}",
        lambda at, run: ["run", "--recipe", write(at / "mine.yaml", content), "--space", "smoke", "--out", "new"],
        *words,
    )


def key(assignment: str, *words: str) -> None:
    """Enter a case of a recipe's key."""
    add(f"key: {assignment}", [*RUN, "--set", assignment], assignment.split("=")[0].split(".")[-1], *words)


def space(name: str, content: str, *words: str) -> None:
    """Enter a case of a search space's file."""
    add(f"space: {name}", lambda at, run: [*RUN, "--budget", "0.6", "--space", write(at / "s.yaml", content)], *words)


def schedule(text: str, *words: str) -> None:
    """Enter a case of a schedule's text."""
    add(f"schedule: {text[:40]}", ["cost", text, "--seq-len", "1024", "--heads", "4"], *words)


# The command line.
add("no command", [], "COMMAND", "--help")
add("unknown command", ["rnu"], "unknown: 'rnu'", "presets")
add("unknown flag", ["run", "--bugdet", "0.3"], "'--bugdet'", "did you mean '--budget'")
add("shortened flag", ["run", "--budg", "0.3"], "'--budg'", "did you mean '--budget'")
add("stray word", ["run", "laptop"], "'laptop'", "run --help")
add("flag of another command", ["show", "--budget", "0.3", "runs"], "'--budget'", "show --help")
add("flag without its value", [*RUN, "--budget"], "--budget", "expected one argument")
add("budget of letters", [*RUN, "--budget", "abc"], "--budget", "float", "'abc'")
for number in ("0", "-1", "2", "nan", "inf", "-inf"):
    add(f"budget {number}", [*RUN, f"--budget={number}"], "budget", "(0, 1]")
add("budget below the space", [*RUN, "--budget", "0.01"], "budget 0.01", "raise the budget to 0.1582")
add(
    "budget named nowhere",
    lambda at, run: [*RUN, "--space", write(at / "s.yaml", "name: mine\nchoices: [full, 'window:4']\n")],
    "--budget",
    "give one, such as",
)
add("seed -1", [*RUN, "--seed", "-1"], "--seed", "[0, ")
add("seed of letters", [*RUN, "--seed", "x"], "--seed", "int")
add("seed too large", [*RUN, "--seed", str(2**63)], "--seed", "[0, 2147483648)")
add("trials 0", [*RUN, "--trials", "0"], "trials", "at least 1, not 0")
add("trials 1.5", [*RUN, "--trials", "1.5"], "--trials", "int")
add("workers 0", [*RUN, "--workers", "0"], "workers", "at least 1, not 0")
RAY = [*RUN, "--pool", "ray", "--ray-address"]
add("pool that is none", [*RUN, "--pool", "rya"], "--pool", "unknown: 'rya'", "local", "ray")
add("Ray's address without Ray", [*RUN, "--ray-address", "auto"], "--ray-address auto needs --pool ray", "drop the")
add("Ray's address without Ray, for l*", ["optimal-l", "--ray-address", "auto"], "needs --pool ray", "drop the")
add("Ray's address without port", [*RAY, "head"], "--ray-address head", "HOST:PORT", "10.0.0.1:6379")
add("Ray's address that is empty", [*RAY, ""], "--ray-address : give HOST:PORT", "or auto")
add("Ray's address with a port of 5000 digits", [*RAY, "head:" + "9" * 5000], "--ray-address head:999", "HOST:PORT")
add("Ray's address of the client", [*RAY, "ray://head:10001"], "--ray-address ray://head:10001", "HOST:PORT")
add("Ray's address with a port too large", [*RAY, "head:65536"], "--ray-address head:65536", "HOST:PORT")
add("Ray's address where nobody listens", [*RAY, "127.0.0.1:1"], "127.0.0.1:1: no answer", "start the cluster")
add("--set without =", [*RUN, "--set", "training.steps"], "--set 'training.steps'", "KEY=VALUE")
add("--set without key", [*RUN, "--set", "=3"], "--set '=3'", "KEY=VALUE")
add("--set through a number", [*RUN, "--set", "training.steps.x=1"], "training.steps holds no keys", "drop")
add("--set of half a list", [*RUN, "--set", "search.rungs=[0.5"], "--set", "quote it")
add("--set of an impossible date", [*RUN, "--set", "training.steps=2001-99-99"], "--set", "quote it")
add("--set of a whole section", [*RUN, "--set", "training=3"], "training", "found 3")
add("recipe that does not ship", ["run", "--recipe", "smok"], "'smok'", "did you mean 'smoke'")
add("recipe that is nowhere", ["run", "--recipe", "a/b.yaml"], "'a/b.yaml'", "give an existing path")
add("recipe with a name too long", ["run", "--recipe", "b" * 999 + ".yaml"], "no file 'bbb", "known: ")
add("space that does not ship", [*RUN, "--space", "smoek"], "'smoek'", "did you mean 'smoke'")
add("space that is a folder", lambda at, run: [*RUN, "--space", str(at)], "search_spaces", "give an existing path")
add(
    "recipe's name names no space",
    lambda at, run: ["run", "--recipe", write(at / "mine.yaml", SMOKE.replace("name: smoke", "name: mine"))],
    "--space is missing",
    "did you mean 'wide'",
)

# Recipes.
recipe("unknown key", SMOKE.replace("search:", "serach:"), "mine.yaml", "'serach'", "did you mean 'search'")
recipe(
    "unknown nested key",
    SMOKE.replace("warmup_steps:", "warm_up_steps:"),
    "'training.warm_up_steps'",
    "did you mean 'warmup_steps'",
)
recipe("key without neighbour", SMOKE + "zzz: 1\n", "'zzz'", "known: name, model")
recipe("missing key", SMOKE.replace("  steps: 8\n", ""), "'training.steps'", "add it")
recipe("missing section", re.sub(r"(?m)^data:.*\n", "", SMOKE), "'data'", "add it")
recipe("key written twice", SMOKE + "name: other\n", "mine.yaml line", "'name' is written twice", "correct it")
recipe("nested key written twice", SMOKE.replace("  steps: 8", "  steps: 8\n  steps: 9"), "'steps'", "twice")
recipe("a list", "- name: smoke\n", "mine.yaml", "expected a mapping", "list")
recipe("a word", "smoke", "mine.yaml", "expected a mapping", "str")
recipe("empty", "", "mine.yaml", "expected a mapping")
recipe("not YAML", "name: [smoke\nmodel: }", "mine.yaml line 2", "not valid YAML", "correct it")
recipe("a tab", "name: smoke\nmodel:\n\tn_layers: 2\n", "mine.yaml line 3", "correct it")
recipe("binary", bytes(range(256)), "mine.yaml", "not UTF-8 text", "give a YAML file")
recipe("NUL bytes", b"name: \0\0\0", "mine.yaml", "not valid YAML", "correct it")
recipe("UTF-16", SMOKE.encode("utf-16"), "mine.yaml", "give a YAML file")
recipe("Python object", "!!python/object/apply:os.getcwd []", "mine.yaml", "not valid YAML", "correct it")
recipe("anchor inside itself", "&a {name: *a}", "mine.yaml", "write it out")
recipe("impossible date", "name: 2001-99-99\n", "mine.yaml", "month", "correct it")
recipe("number of 5000 digits", f"name: {'9' * 5000}\n", "mine.yaml", "digits", "correct it")
recipe("section that is a number", re.sub(r"(?m)^model:.*", "model: 7", SMOKE), "mine.yaml: model", "found 7")
recipe("name with a slash", SMOKE.replace("name: smoke", "name: a/b"), "name", "letters, digits")
key("training.stesp=3", "'training.stesp'", "did you mean 'steps'")
key("training.optimizer=muno", "adamw", "muon", "muno")
key("training.muon_learning_rate=0", "positive, not 0")
key("search.tolerance=-0.1", "must not be negative, not -0.1")
add(
    "Muon under ZeRO",
    [*RUN, "--set", "training.optimizer=muon", "--set", "training.deepspeed=zero2"],
    "training.deepspeed zero2",
    "ZeRO stage 0",
    "training.optimizer=adamw",
)
key("training.steps=many", "valid integer", "'many'")
key("training.steps=1.5", "valid integer", "1.5")
key("training.steps=true", "valid integer", "True")
key("training.steps=null", "valid integer", "None")
key("training.steps=0", "at least 1, not 0")
key("training.steps='8'", "valid integer", "'8'")
key("training.learning_rate=-1e-3", "must be positive, not -0.001")
key("training.learning_rate=.nan", "finite number")
key("training.learning_rate=.inf", "finite number")
key("training.betas=[0.9]", "'training.betas.1' is missing", "add it")
key("training.betas=[0.9, 1.0]", "[0, 1)")
key("training.warmup_steps=99", "between 0 and steps (8)")
key("training.precision=fp8", "'bf16' or 'float32'")
key("training.val_sequences=0", "at least 1")
key("training.ranks=3", "must divide batch_size 4")
key("training.gpus=2", "0 or 1")
key("training.deepspeed=zero9", "did you mean 'zero", "trials/deepspeed")
key("training.seq_len=1", "at least 2 tokens")
add("text shorter than spans", [*RUN, "--set", "training.seq_len=7"], "the text of 7 tokens", "use a smaller span")
key("training.seq_len=24", "data.pairs 4", "raise it to")
key("model.n_layers=0", "at least 1")
key("model.n_heads=3", "d_model 32 is no multiple")
key("model.n_heads=32", "even head dimension", "change n_heads")
key("model.n_kv_heads=3", "must divide n_heads 2")
key("search.sampler=cma", "'gain', 'gp', 'tpe', 'nsga2' or 'random'")
key("search.rungs=[0.5, 0.25]", "rising")
key("search.confirm_seeds=1", "at least 2 for an interval")
key("search.reduction=1", "at least 2")
key("data.source=web", "'stdlib'", "'web'")
key("data.queries=5", "must not exceed pairs 4")
key("data.vocab_size=8", "raise it to")
key("data.files=a.txt", "valid array", "'a.txt'")
add(
    "more GPUs than there are",
    [*RUN, "--set", "training.gpus=1", "--set", "training.ranks=64", "--set", "training.batch_size=64"],
    "64 GPU ranks",
    "set training.gpus=0",
)

# Search spaces.
space("unknown key", SPACE.replace("choices", "choises"), "s.yaml", "'choises'", "did you mean 'choices'")
space("no choices", "name: x\n", "'choices'", "add it")
space("empty choices", "name: x\nchoices: []\n", "choices is empty", "name at least one span")
space("choices that are one word", "name: x\nchoices: full\n", "choices", "expected a list")
space("choice that is a number", "name: x\nchoices: [5]\n", "choices.0", "expected a span")
space("choice twice", "name: x\nchoices: [full, full]\n", "full is named twice", "name it once")
space("unknown kind", "name: x\nchoices: [full, 'windwo:4']\n", "choices.1", "did you mean 'window'")
space("window 0", "name: x\nchoices: ['window:0']\n", "'window:0'", "at least 1 token")
space("window -4", "name: x\nchoices: ['window:-4']\n", "'window:-4'", "at least 1 token")
space("window longer than the text", "name: x\nchoices: ['window:49']\n", "window:49", "use a smaller span")
space("dilation beyond the text", "name: x\nchoices: ['window:16/4']\n", "window:16/4", "use a smaller span")
space("block longer than the text", "name: x\nchoices: ['block:64']\n", "block:64", "use a smaller span")
space("sink longer than the text", "name: x\nchoices: ['window:4+sink:99']\n", "sink:99", "use a smaller span")
space("more dilated heads than heads", "name: x\nchoices: ['window:4/2@3']\n", "@3", "more heads than the model's 2")
space("unknown key of a span", "name: x\nchoices: [{kind: window, sise: 4}]\n", "'sise'", "did you mean 'size'")
space("span without kind", "name: x\nchoices: [{size: 4}]\n", "choices.0", "needs the key 'kind'")
space("span with an empty list", "name: x\nchoices: [{kind: window, size: []}]\n", "size", "at least one value")
space("layer that is none", SPACE + "layers: {7: [full]}\n", "no layer 7", "the last is 1")
space("layer with an unknown choice", SPACE + "layers: {0: ['window:5']}\n", "layers.0", "did you mean 'window:")
space("layer tied twice", SPACE + "tied: [[0, 1], [1, 0]]\n", "tied: layer 1 stands in it twice", "name it once")
space("pattern and tied", SPACE + "tied: [[0, 1]]\npattern: 2\n", "exclude each other", "keep one")
space("pattern 0", SPACE + "pattern: 0\n", "pattern", "at least 1 layer")
space("pattern longer than the model", SPACE + "pattern: 9\n", "pattern 9", "shorten it")
space("budget 2", SPACE.replace("budget: 0.6", "budget: 2"), "budget", "(0, 1]")
space("budget in words", SPACE.replace("budget: 0.6", "budget: low"), "budget", "valid number")
space(
    "baseline span that is no choice", SPACE + "baseline_span: window:9\n", "baseline_span", "did you mean 'window:8'"
)
space("a list", "- full\n", "s.yaml", "expected a mapping")

# Schedules as text and as files, and what they are counted at.
schedule("", "empty schedule", "expected terms such as")
schedule("full ful*2", "term 2 at character 6", "did you mean 'full'")
schedule("full*0", "'full*0'", "1 to 100000")
schedule("full*x", "'full*x'", "whole number of layers")
schedule("full*²", "'full*²'", "whole number of layers")
schedule("full*1000000000000", "whole number of layers", "1 to 100000")
schedule("full:3", "'full:3'", "write 'full'")
schedule("window", "'window'", "needs a size")
schedule("window:", "'window:'", "expected a whole number for the size")
schedule("window:0", "'window:0'", "at least 1 token")
schedule("window:" + "9" * 5000, "whole number for the size")
schedule("window:1025", "window:1025", "use a smaller span or 'full'")
schedule("window:4/0", "dilation", "at least 1")
schedule("window:4/2@5", "@5", "more heads than the model's 4")
schedule("block:4/2", "only a window can be dilated")
schedule("window:4+sink:0", "drop '+sink:0'")
schedule("window:4+las:1", "LaS decay", "[0, 1)")
schedule("window:4+las:nan", "LaS decay", "[0, 1)")
schedule("window:4+las:x", "expected a number after 'las:'")
schedule("window:4+snik:2", "'+snik:2'", "expected +sink:G")
add("cost: no length", ["cost", "full"], "--seq-len", "cost --help")
add("cost: length 0", ["cost", "full", "--seq-len", "0"], "--seq-len", "at least 1, not 0")
add("cost: heads 0", ["cost", "full", "--seq-len", MILLION, "--heads", "0"], "--heads", "at least 1, not 0")
add(
    "cost: heads not divisible",
    ["cost", "full", "--seq-len", MILLION, "--heads", "6", "--kv-heads", "4"],
    "--kv-heads 4",
    "must divide --heads 6",
)
add("cost: head dimension", ["cost", "full", "--seq-len", "8", "--head-dim", "-1"], "--head-dim", "at least 1")
add("cost: no such file", ["cost", "no.yaml", "--seq-len", "8"], "no.yaml", "give an existing file")
for name, content, words in (
    ("without key", "verdict: good\n", ("no key 'layers'", "give a winner.yaml")),
    ("empty", "", ("no key 'layers'", "give a winner.yaml")),
    ("not YAML", "layers: [", ("not valid YAML", "correct it")),
    ("a number", "layers: 3\n", ("a list with one mapping per layer",)),
    ("wrong layer", "- kind: full\n- kind: windwo\n", ("layer 1", "did you mean 'window'")),
    ("size in words", "- {kind: window, size: four}\n", ("layer 0", "must be a whole number, not 'four'")),
    ("unknown key", "- {kind: window, sise: 4}\n", ("layer 0", "did you mean 'size'")),
):
    add(
        f"cost: file {name}",
        lambda at, run, content=content: ["cost", write(at / "w.yaml", content), "--seq-len", "8"],  # type: ignore[misc]
        "w.yaml",
        *words,
    )
add("preset that is none", ["presets", "masfomer"], "'masfomer'", "did you mean 'masformer'")
add("preset's parameter", ["presets", "masformer", "ll=4"], "'ll'", "did you mean 'l'")
add("preset without its size", ["presets", "qwen2", "n_layers=4"], "needs max_window_layers", "give max_window_layers=")
add("preset's size without =", ["presets", "masformer", "l"], "'l'", "KEY=VALUE")
add("preset's size in words", ["presets", "masformer", "l=four"], "l must be a whole number, not 'four'")
add("preset out of range", ["presets", "masformer", "l=25"], "between 0 and n_layers (24)")


# Data.
def data(name: str, source: str, file: tuple[str, str | bytes] | None, files: str, more: str, *words: str) -> None:
    """Enter a case of local data: a file's name and content, the pattern that names it, and a further setting."""

    def arguments(at: Path, run: Path) -> list[str]:
        if file is not None:
            write(at / file[0], file[1])
        settings = [
            f"data.source={source}",
            f"data.files=[{files!r}]",
            "data.vocab_size=300",
            *([more] if more else []),
        ]
        return [*RUN, *(part for setting in settings for part in ("--set", setting))]

    add(f"data: {name}", arguments, *words)


ROW = json.dumps({"text": "to be or not to be " * 9, "id": 1}) + "\n"
data("empty file", "text", ("a.txt", ""), "a.txt", "", "data.files", "a.txt is empty", "leave it out")
data("missing file", "text", None, "no.txt", "", "data.files", "no.txt", "give an existing path")
data("glob of nothing", "text", None, "*.txt", "", "data.files", "'*.txt'", "correct the pattern")
data("too little text", "text", ("a.txt", "to be " * 9), "a.txt", "", "data.files", "name more text")
data("not UTF-8", "text", ("a.txt", b"\xff\xfe\x00" * 99), "a.txt", "", "a.txt", "give UTF-8 text")
data(
    "malformed JSON lines", "json", ("a.jsonl", ROW * 9 + "{oops\n"), "a.jsonl", "", "a.jsonl", "one JSON object a line"
)
data("missing column", "json", ("a.jsonl", ROW), "a.jsonl", "data.column=body", "'body'", "set data.column to one of")
data("column of numbers", "json", ("a.jsonl", ROW), "a.jsonl", "data.column=id", "'id'", "set data.column")
data("no Parquet", "parquet", ("a.parquet", "no"), "a.parquet", "", "a.parquet", "give Parquet files")
data("no tokenizer", "json", ("a.jsonl", ROW), "a.jsonl", "data.tokenizer=a.jsonl", "data.tokenizer", "tokenizer.json")
data("missing tokenizer", "json", ("a.jsonl", ROW), "a.jsonl", "data.tokenizer=no.json", "no.json", "give a tokenizer")
data(
    "no bytes", "json", ("a.jsonl", ROW * 9), "a.jsonl", "data.vocab_size=9", "data.vocab_size", "raise it to at least"
)
data("no files", "text", None, "", "data.files=[]", "data.files is empty", "name the text files")
add("data: no hub id", [*RUN, "--set", "data.source=hub"], "data.dataset is missing", "name the hub id")


# DeepSpeed's own files.
def deepspeed(name: str, content: str, *words: str) -> None:
    """Enter a case of a DeepSpeed JSON."""
    add(
        f"deepspeed: {name}",
        lambda at, run: [*RUN, "--set", "training.deepspeed=" + write(at / "d.json", content)],
        "d.json",
        *words,
    )


deepspeed("broken", '{"zero_optimization": ', "not a DeepSpeed JSON", "correct it")
deepspeed("a list", "[]", "holds a mapping", "correct it")
deepspeed("stage 7", '{"zero_optimization": {"stage": 7}}', "zero_optimization.stage", "0, 1, 2 or 3, not 7")
deepspeed("section that is a list", '{"zero_optimization": []}', "zero_optimization must be a mapping", "correct it")
deepspeed("stage in words", '{"zero_optimization": {"stage": "two"}}', "zero_optimization.stage", "0, 1, 2 or 3")
deepspeed("batch size of its own", '{"train_batch_size": 7}', "train_batch_size", 'take it out or write "auto"')


# Where results go.
def changed(name: str, change: Callable[[Path], object], *words: str, more: tuple[str, ...] = ()) -> None:
    """Enter a case of a finished run, copied and then changed or asked for differently."""

    def arguments(at: Path, run: Path) -> list[str]:
        shutil.copytree(run, at / "old")
        change(at / "old")
        return ["run", "--recipe", "smoke", "--out", "old", *more]

    add(f"out: {name}", arguments, *words)


def nothing(run: Path) -> None:
    """Leave the run as it is."""


def edit(file: str, pattern: str, replacement: str) -> Callable[[Path], object]:
    """Return a change of one place in a file."""

    def change(run: Path) -> None:
        text = (run / file).read_text()
        found = re.sub(pattern, replacement, text, count=1)
        assert found != text
        (run / file).write_text(found)

    return change


def garble(file: str, number: int, line: bytes = b"\x00\xffgarbage\n") -> Callable[[Path], object]:
    """Return a change of one whole line of a file, counted from 0."""

    def change(run: Path) -> None:
        lines = (run / file).read_bytes().splitlines(keepends=True)
        lines[number] = line
        (run / file).write_bytes(b"".join(lines))

    return change


add("out: a file", lambda at, run: [*RUN[:-1], write(at / "f", "x")], "--out", "a file stands there", "name a folder")
add("out: below a file", lambda at, run: [*RUN[:-1], write(at / "f", "x") + "/a/b"], "--out", "permissions or name")
add("out: where no folder can be made", [*RUN[:-1], "/proc/layersearch/run"], "--out", "permissions or name another")
add(
    "out: folder with other things",
    lambda at, run: [*RUN[:-1], str(Path(write(at / "d" / "notes.txt", "mine")).parent)],
    "--out",
    "holds other things",
    "name a new or empty folder",
)
changed("another seed", nothing, "another seed (0, now 5)", "name another folder", more=("--seed", "5"))
changed("another budget", nothing, "another budget (0.6, now 0.7)", "name another folder", more=("--budget", "0.7"))
changed(
    "another recipe",
    nothing,
    "another recipe.training.steps (8, now 9)",
    "name another folder",
    more=("--set", "training.steps=9"),
)
changed(
    "another space",
    lambda run: write(run.parent / "s.yaml", SPACE.replace("name: smoke", "name: mine")),
    "another space.name ('smoke', now 'mine')",
    "name another folder",
    more=("--space", "s.yaml"),
)
changed(
    "data that changed", edit("config.json", '"fingerprint": "..', '"fingerprint": "__'), "data.fingerprint", "name"
)
changed("another format", edit("config.json", '"format": 1', '"format": 2'), "format 2", "reads format 1", "start anew")
changed("no format", edit("config.json", '"format": 1,', ""), "config.json", "restore it or start anew")
changed("half a configuration", lambda run: os.truncate(run / "config.json", 700), "config.json", "restore it or start")
changed("empty configuration", lambda run: os.truncate(run / "config.json", 0), "config.json", "restore it or start")
changed("binary configuration", garble("config.json", 3), "config.json", "restore it or start anew")
changed("configuration that is a list", lambda run: write(run / "config.json", "[1]"), "config.json", "restore it or")
changed(
    "configuration without budget",
    edit("config.json", '(?m)^  "budget"', '  "bugdet"'),
    "'budget'",
    "restore it or start",
)
changed("garbage in the journal", garble("study.journal", 7), "study.journal", "damaged (line 8", "restore it")
changed("garbage at the journal's end", garble("study.journal", -1), "study.journal", "damaged", "restore it, or start")
changed(
    "journal of another program", lambda run: write(run / "study.journal", '{"a": 1}\n'), "study.journal", "restore it"
)
changed(
    "journal of another study",
    edit("study.journal", '"study_name":"layersearch"', '"study_name":"other"'),
    "study.journal",
    "restore it, or start anew",
)
changed("garbage in the records", garble("trials.jsonl", 4), "trials.jsonl line 5", "restore the file or start")
changed("garbage at the records' end", garble("trials.jsonl", -1), "trials.jsonl line 16", "restore the file or start")
changed("record of another program", garble("trials.jsonl", 2, b'{"a": 1}\n'), "line 3", "'a'", "restore the file")
changed("record that is a number", garble("trials.jsonl", 2, b"7\n"), "trials.jsonl line 3", "restore the file")
changed("loss in words", edit("trials.jsonl", r'"loss": [\d.]+', '"loss": "low"'), "line 1", "loss", "restore the file")
changed("loss that is no number", edit("trials.jsonl", r'"loss": [\d.]+', '"loss": NaN'), "line 1", "loss", "restore")
changed(
    "schedule that is none", edit("trials.jsonl", r'"full\*2"', '"ful*2"'), "trials.jsonl line", "did you mean 'full'"
)

# show, plot and export.
for command in ("show", "plot"):
    add(f"{command}: nothing there", [command, "no"], "no:", "give a folder that 'layersearch run' made")
    add(
        f"{command}: no run", lambda at, run, command=command: [command, str(at)], "no run folder", "give a folder that"
    )  # type: ignore[misc]
    add(
        f"{command}: no trials",
        lambda at, run, command=command: [command, str(begun(at, run))],  # type: ignore[misc]
        "no trial has finished yet",
        "run the command",
    )
add(
    "show: damaged",
    lambda at, run: ["show", str(begun(at, run, b"garbage\n"))],
    "trials.jsonl line 1",
    "restore the file",
)
add(
    "plot: below a file",
    lambda at, run: ["plot", str(run), "--out", write(at / "f", "") + "/a"],
    "--out",
    "name another",
)


def begun(at: Path, run: Path, records: bytes = b"") -> Path:
    """Return a run that was killed before its first record, or with such a file of records."""
    (at / "begun").mkdir()
    shutil.copy(run / "config.json", at / "begun")
    (at / "begun" / "trials.jsonl").write_bytes(records)
    return at / "begun"


def solve(name: str, what: list[str], *words: str, table: str | None = None) -> None:
    """Enter a case of a question to the finished run, with a table of latencies in ``ms.yaml``."""

    def arguments(at: Path, run: Path) -> list[str]:
        if table is not None:
            write(at / "ms.yaml", table)
        return ["solve", str(run), *what]

    add(f"solve: {name}", arguments, *words)


solve("no constraint", [], "--budget --kv-cache --latency is required", "solve --help")
solve("two constraints", ["--budget", "0.3", "--kv-cache", "9KiB"], "--kv-cache", "not allowed with argument --budget")
for number in ("0", "-1", "2", "nan", "inf"):
    solve(f"budget {number}", [f"--budget={number}"], "budget", "(0, 1]")
solve("budget below the space", ["--budget", "0.01"], "budget 0.01", "raise the budget to 0.1582")
solve("budget of letters", ["--budget", "low"], "--budget", "float")
solve("cache too small", ["--kv-cache", "300"], "--kv-cache 300", "window:4*2", "raise it to 512")
solve("cache of nothing", ["--kv-cache", "0"], "--kv-cache", "at least 1 byte")
solve("cache in words", ["--kv-cache", "small"], "--kv-cache 'small'", "65536 or 64KiB")
solve("cache below zero", ["--kv-cache=-5"], "--kv-cache '-5'", "65536 or 64KiB")
solve("cache of another unit", ["--kv-cache", "3kib"], "unknown unit 'kib'", "known: B, KiB")
solve("values of no bytes", ["--kv-cache", "9KiB", "--bytes", "0"], "--bytes", "at least 1, not 0")
solve("bytes without a cache", ["--budget", "0.3", "--bytes", "4"], "--bytes", "needs --kv-cache")
solve("latency without its table", ["--latency", "3"], "--latency needs --latency-table")
solve("table without its limit", ["--budget", "0.3", "--latency-table", "x"], "--latency-table needs --latency")
LATENCIES = "full: 0.3\nwindow:4: 0.1\nwindow:8: 0.1\nblock:12: 0.1\n"
LATENCY = ["--latency", "3", "--latency-table", "ms.yaml"]
for number in ("0", "-1", "nan", "inf"):
    solve(
        f"latency {number}",
        [f"--latency={number}", "--latency-table", "ms.yaml"],
        "--latency",
        "positive number of milliseconds",
        table=LATENCIES,
    )
solve(
    "latency too short",
    ["--latency", "0.1", "--latency-table", "ms.yaml"],
    "--latency 0.1",
    "takes 0.2 ms",
    "raise it",
    table=LATENCIES,
)
solve("no table", LATENCY, "ms.yaml", "give an existing file")
solve("empty table", LATENCY, "ms.yaml", "milliseconds of one layer by span", table="")
solve("table that is a list", LATENCY, "ms.yaml", "milliseconds of one layer by span", table="- 3\n")
solve("missing spans", LATENCY, "no latency of window:8, block:12", "add", table="full: 1\nwindow:4: 1\n")
solve("latency of no span", LATENCY, "ms.yaml", "did you mean 'full'", table=LATENCIES + "ful: 2\n")
solve("latency in words", LATENCY, "ms.yaml: full", "found 'slow'", table=LATENCIES.replace("0.3", "slow"))
solve("latency of zero", LATENCY, "--latency-table: full", "(0, 1000000)", table=LATENCIES.replace("0.3", "0"))
solve("latency that is no number", LATENCY, "--latency-table: full", "not nan", table=LATENCIES.replace("0.3", ".nan"))
solve("span twice", LATENCY, "ms.yaml", "window:4 is named twice", table=LATENCIES + "'window:4/1': 1\n")
add("solve: nothing there", ["solve", "no", "--budget", "0.3"], "no:", "give a folder that 'layersearch run' made")
add(
    "solve: no trials",
    lambda at, run: ["solve", str(begun(at, run)), "--budget", "0.3"],
    "no trial has finished yet",
    "run the command",
)
add(
    "solve: too few trials",
    lambda at, run: [
        "solve",
        str(begun(at, run, b"".join((run / "trials.jsonl").read_bytes().splitlines(keepends=True)[:3]))),
        "--budget",
        "0.3",
    ],
    "3 schedules",
    "too few to learn from",
    "--trials",
)
add(
    "solve: damaged space",
    lambda at, run: [
        "solve",
        str(edited(at, run, '"choices": \\[', '"choices": [3, ')),
        "--budget",
        "0.3",
    ],
    "config.json: space",
    "choices.0",
)
add("confirm: nothing there", ["confirm", "no", "full*2"], "no:", "give a folder that 'layersearch run' made")
add("confirm: no schedule", lambda at, run: ["confirm", str(run)], "SCHEDULE", "confirm --help")
add("confirm: unknown kind", lambda at, run: ["confirm", str(run), "ful*2"], "did you mean 'full'")
add("confirm: another depth", lambda at, run: ["confirm", str(run), "full*3"], "3 layers", "one span per layer")
add(
    "confirm: outside the space",
    lambda at, run: ["confirm", str(run), "full window:5"],
    "'full window:5'",
    "outside search space 'smoke'",
)
add(
    "confirm: Ray's address without Ray",
    lambda at, run: ["confirm", str(run), "full*2", "--ray-address", "auto"],
    "--ray-address auto needs --pool ray",
)
add(
    "confirm: Ray's address where nobody listens",
    lambda at, run: ["confirm", str(run), "full*2", "--pool", "ray", "--ray-address", "127.0.0.1:1"],
    "127.0.0.1:1: no answer",
    "start the cluster",
)
add("confirm: missing file", lambda at, run: ["confirm", str(run), "w.yaml"], "w.yaml", "give an existing file")


def edited(at: Path, run: Path, pattern: str, replacement: str) -> Path:
    """Return a run with one place of its configuration changed."""
    begun(at, run)
    edit("config.json", pattern, replacement)(at / "begun")
    return at / "begun"


def export(name: str, what: list[str], *words: str) -> None:
    """Enter a case of an export of a schedule of the smoke recipe's size."""
    add(f"export: {name}", ["export", *what, "--recipe", "smoke", "--out", "new"], *words)


add("export: no target", ["export", "full*2", "--out", "new"], "--to", "export --help")
add("export: nowhere", ["export", "full*2", "--to", "hf"], "--out", "export --help")
export("unknown target", ["full*2", "--to", "hff"], "--to 'hff'", "did you mean 'hf'")
export("no family", ["full*2", "--to", "hf"], "--to hf needs --family", "ministral, qwen2, qwen3")
export("unknown family", ["full*2", "--to", "hf", "--family", "ministrel"], "--family", "did you mean 'ministral'")
export("vllm without a family", ["full window:8", "--to", "vllm"], "--to vllm needs --family", "llama")
export("vllm of qwen3", ["full window:8", "--to", "vllm", "--family", "qwen3"], "all-full", "--model-impl transformers")
export("sglang of llama", ["full window:8", "--to", "sglang", "--family", "llama"], "all-full", "--family gemma3")
export("sglang of one key", ["full window:1", "--to", "sglang", "--family", "gemma3"], "layer 1", "give window:2")
export("vllm of gpt_oss", ["full window:8", "--to", "vllm", "--family", "gpt_oss"], "hard-coded", "--family llama")
export("blocks for megatron", ["full block:8", "--to", "megatron"], "layer 1: block:8", "nearest schedule")
export("family of a modelling file", ["full*2", "--to", "hf-remote", "--family", "qwen3"], "--family", "drop it")
export("family that is deaf", ["full*2", "--to", "hf", "--family", "llama"], "layer_types", "give --family ministral")
export("family of a file", ["full*2", "--to", "yaml", "--family", "qwen3"], "--family", "drop it")
export(
    "blocks", ["full block:8", "--to", "hf", "--family", "qwen3"], "layer 1: block:8", "the nearest schedule it holds"
)
export(
    "sinks", ["full window:8+sink:2", "--to", "hf", "--family", "qwen3"], "no sinks", "the nearest schedule it holds"
)
export("two windows", ["window:4 window:8", "--to", "hf", "--family", "qwen3"], "layer 1", "one window size")
export("another depth", ["full*3", "--to", "hf", "--family", "qwen3"], "3 layers, the model 2", "at its own depth")
export("neither run nor schedule", ["runs/mine", "--to", "hf", "--family", "qwen3"], "no run folder 'runs/mine'")
add("export: no recipe", ["export", "full*2", "--to", "yaml", "--out", "new"], "--recipe is missing", "name a recipe")
add(
    "export: schedule longer than a file's name",
    ["export", "full window:4 " * 99, "--to", "yaml", "--recipe", "smoke", "--out", "new"],
    "198 layers, the model 2",
    "at its own depth",
)
add(
    "export: no winner yet",
    lambda at, run: [
        *("export", str(begun(at, run, (run / "trials.jsonl").read_bytes().splitlines(keepends=True)[0]))),
        *("--to", "yaml", "--out", "new"),
    ],
    "no winner yet",
    "run the command that made it again",
)
add(
    "export: over another file",
    lambda at, run: [
        *("export", str(run), "--to", "yaml", "--out", str(Path(write(at / "d" / "schedule.yaml", "mine")).parent))
    ],
    "schedule.yaml exists and differs",
    "give --out another folder",
)
add(
    "export: below a file",
    lambda at, run: ["export", str(run), "--to", "yaml", "--out", write(at / "f", "") + "/a"],
    "cannot be written",
    "give --out a folder that can",
)


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file, by path; folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.name != "run.lock"
    }


def check_line(line: str, words: tuple[str, ...]) -> None:
    assert line.startswith("layersearch: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    assert [word for word in words if word not in line] == [], line


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 70


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_changed(
    case: str,
    tmp_path: Path,
    smoke_run: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments, words = CASES[case]
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(cache_dir))
    monkeypatch.chdir(tmp_path)
    line = arguments(tmp_path, smoke_run)
    before = contents(tmp_path), contents(smoke_run)
    assert main(line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err, words)
    assert (contents(tmp_path), contents(smoke_run)) == before


def test_a_folder_that_another_search_holds_is_left_alone(
    tmp_path: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(smoke_run, tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    with (tmp_path / "old" / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["run", "--recipe", "smoke", "--out", "old"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err, ("--out old", "another search is running there", "wait for it or name another folder"))
    assert contents(tmp_path) == before


def shell(*arguments: str, at: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-P", "-m", "layersearch", *arguments]
    return subprocess.run(command, cwd=at, text=True, stderr=subprocess.PIPE, check=False, **more)  # type: ignore[call-overload]


def test_a_process_ends_with_the_same_line_and_code(tmp_path: Path) -> None:
    done = shell("cost", "full*2 windwo:4", "--seq-len", "8", at=tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, ("term 2", "did you mean 'window'"))


def test_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = shell("cost", "full*2", "--seq-len", "8", at=tmp_path, stdout=full)
    assert done.returncode == 2
    check_line(done.stderr, ("No space left", "mend"))


def test_a_hub_that_is_down_is_said_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]  # closed again: whoever calls there is refused
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": "home", "LAYERSEARCH_CACHE": "cache"}
    done = shell(
        *(*RUN, "--set", "data.source=hub", "--set", "data.dataset=me/tiny"),
        at=tmp_path,
        stdout=subprocess.PIPE,
        env=os.environ | environment | {"NO_PROXY": "127.0.0.1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, ("data.dataset me/tiny", "does not answer and there is no local copy", "connect, or give"))
    assert not (tmp_path / "new").exists()


def test_a_port_that_is_no_ray_cluster_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that listens and never answers."""
    monkeypatch.setattr(ray_pool, "_ANSWER", 3.0)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main([*RAY, address]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err, (f"--ray-address {address}", "no Ray cluster answers there", "give the port of its head node"))
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python itself makes of a module that cannot be imported
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--pool", "ray"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err, ("--pool ray needs Ray", 'pip install "layersearch[ray]"'))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [1000, 6000], ids=["configuration", "journal"])
def test_a_full_disk_is_one_line(room: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = shell(*RUN, at=tmp_path, stdout=subprocess.PIPE, preexec_fn=limit)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(
        done.stderr.splitlines(keepends=True)[-1], ("--out new", "cannot be written", "free space", "run the same")
    )
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert "Traceback" not in done.stderr
    assert ("config.json" in left) == (room > 1000)


def test_changes_of_the_table_are_real(smoke_run: Path) -> None:
    """The smoke run that the table damages is whole: the damage is what is refused."""
    config = json.loads((smoke_run / "config.json").read_text())
    assert config["format"] == 1
    assert len((smoke_run / "trials.jsonl").read_text().splitlines()) == 16
    assert yaml.safe_load((smoke_run / "winner.yaml").read_text())["layers"]

"""Fuzz every parser of the package. Only `LayersearchError` may come out of it, within `SECONDS` and `BYTES`.

    python analysis/faults/fuzz.py mutate            # seeded mutations of whole files, until each parser has its number
    python analysis/faults/fuzz.py grow schedule     # Hypothesis draws texts from a grammar
    python analysis/faults/fuzz.py guided record     # atheris, guided by coverage; it needs the package atheris
    python analysis/faults/fuzz.py one run 12345     # one mutation again, with its traceback
    python analysis/faults/fuzz.py table             # write the table of README.md

An execution is one number: the same number gives the same bytes. What was run stands in ``fuzz.jsonl``, so a call goes
on where the last one ended. Each batch runs in a process of its own, which a crash cannot take along.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
RECORD, README = HERE / "fuzz.jsonl", HERE / "README.md"
SECONDS, BYTES = 20, 6 * 10**9
"""Most processor time of one execution, and address space of the process."""
WANTED = {
    "schedule": 360_000,
    "set": 120_000,
    "bytes": 120_000,
    "line": 120_000,
    "record": 120_000,
    "jsonl": 60_000,
    "text": 20_000,
    "html": 20_000,
    "gzip": 10_000,
    "zip": 10_000,
    "records": 10_000,
    "config.json": 10_000,
    "latencies": 10_000,
    "schedule file": 5_000,
    "space": 5_000,
    "recipe": 5_000,
    "convert recipe": 3_000,
    "model config": 3_000,
    "export config": 3_000,
    "gguf": 5_000,
    "tokenizer": 5_000,
    "parquet": 10_000,
    "weights": 5_000,
    "checkpoint": 5_000,
    "journal": 500,
    "run": 500,
}
TOKENS = (
    *("full", "window:", "block:", "+sink:", "+las:", "*", "/", "@", ":", ",", " ", "\n", "\r\n", "\0", "\ufeff", "-"),
    *("0", "1", "9" * 30, "1e400", "-1", "1e308", "nan", "Infinity", "true", "null", '""', "[]", "{}", "[" * 3000),
    *("\\u0000", "\\ud800", "\x1b[31m", "\u202e", "&a ", "*a", "!!timestamp ", "!!python/object:os.system ", "<<: "),
    *("../", "/etc/passwd", "~", "%n", "{0}", "'", '"', "\\", "#", "---\n", "crc32", "schedule", "state", "loss", "."),
)
VALUES = (
    *(None, True, 0, -1, 2**31, 2**63, 10**30, 1e308, -0.0, 5e-324),
    *("", "x", "\x1b[31m", "\ud800", [], {}, [[]], [None]),
)


def mutated(seeds: tuple[bytes, ...], whole: bool, number: int) -> bytes:
    """Return the bytes of one execution."""
    rng = Random(number)
    content = rng.choice(seeds)
    if whole and rng.random() < 0.6:
        return _exchanged(content, rng)
    data = bytearray(content)
    for _ in range(min(8, 1 + int(rng.expovariate(0.8)))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.1)))
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 3 | 4:
                data[at:at] = rng.choice(TOKENS).encode()
            case 5:
                data[at:end] = rng.randbytes(end - at)
            case 6:
                del data[at:]
            case _:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at:end] = other[start : start + 40]
    return bytes(data[:200_000])


def _exchanged(content: bytes, rng: Random) -> bytes:
    """Return JSON in which some values are others: of another type, an extreme one, or one from elsewhere in it."""
    held = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places: list[tuple[Any, Any]] = []
        _collect(held, places)
        if not places:
            break
        parent, key = rng.choice(places)
        other = rng.choice(places)
        value = other[0][other[1]] if rng.random() < 0.3 else rng.choice(VALUES)
        match rng.randrange(6):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("", "x", "crc32", "\x1b", str(key) + "_"))] = copy.deepcopy(parent.pop(key))
            case 2 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                parent[key] = parent[key] * rng.choice((-1, 0, 0.5, 2, 10**9, 10**18)) + rng.choice((0, 1, -1))
            case _:
                parent[key] = copy.deepcopy(value)
    return json.dumps(held).encode()


def _collect(held: Any, places: list[tuple[Any, Any]]) -> None:
    for key in list(held) if isinstance(held, dict) else range(len(held)):
        places.append((held, key))
        if isinstance(held[key], dict | list):
            _collect(held[key], places)


class _TooLong(Exception):
    pass


def _alarm(number: int, frame: object) -> None:
    raise _TooLong


def _quietly() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, _alarm)


def fault(read: Any, content: bytes) -> str | None:
    """Return how a parser failed on these bytes, in one line, or None."""
    from layersearch.errors import LayersearchError

    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        read(content)
    except LayersearchError as error:
        text = str(error)
        if "\n" in text or any(ord(letter) < 32 and letter != "\t" for letter in text):
            return "a message with control characters"
    except _TooLong:
        return f"more than {SECONDS} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in last if "/layersearch/" in frame.filename]
        return f"{type(error).__name__} at {own[-1] if own else '?'}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


def batch(name: str, first: int, count: int) -> None:
    """Run executions in this process; print their faults and the last number reached."""
    from parsers import parsers

    parser = parsers()[name]
    _quietly()
    for number in range(first, first + count):
        print(f"@{number}", end="\r", file=sys.stderr, flush=True)
        found = fault(parser.read, mutated(parser.seeds, parser.json, number))
        if found is not None:
            print(json.dumps([number, found]), flush=True)


def _note(**facts: Any) -> None:
    with RECORD.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def mutate(names: list[str], size: int = 10_000) -> None:
    """Run batches until each parser has the executions of `WANTED`."""
    for name in names or WANTED:
        done = max(
            (row["first"] + row["count"] for row in _rows() if row["parser"] == name and "first" in row), default=0
        )
        while done < WANTED[name]:
            count, began = min(size, WANTED[name] - done), time.monotonic()
            words = [sys.executable, __file__, "batch", name, str(done), str(count)]
            made = subprocess.run(words, capture_output=True, text=True, check=False)
            found = [json.loads(line) for line in made.stdout.splitlines() if line.startswith("[")]
            if made.returncode:
                last = int(made.stderr.rpartition("@")[2].split()[0]) if "@" in made.stderr else done
                found.append([last, f"the process ended with {made.returncode}: {made.stderr.strip()[-200:]}"])
                count = last + 1 - done
            kinds = Counter(kind for _, kind in found)
            first = {kind: next(number for number, held in found if held == kind) for kind in kinds}
            _note(
                parser=name,
                way="mutations",
                first=done,
                count=count,
                faults=[[kind, times, first[kind]] for kind, times in kinds.items()],
                seconds=round(time.monotonic() - began),
            )
            print(name, done + count, dict(kinds), flush=True)
            done += count


def grow(name: str, count: int = 20_000) -> None:
    """Let Hypothesis draw texts: terms of the grammar of schedules, or nested JSON for any other parser."""
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st
    from parsers import parsers

    parser, found = parsers()[name], Counter[str]()
    _quietly()
    part = st.one_of(st.sampled_from(TOKENS), st.integers().map(str), st.text(max_size=4))
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(TOKENS))
    key = st.one_of(
        st.sampled_from(("kind", "size", "schedule", "loss", "state", "steps", "text", "x")), st.text(max_size=4)
    )
    nested = st.recursive(leaf, lambda below: st.one_of(st.lists(below), st.dictionaries(key, below)), max_leaves=20)
    grammar = name in ("schedule", "set", "bytes")
    texts = st.lists(part, max_size=12).map("".join) if grammar else nested.map(json.dumps)

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def drawn(text: str) -> None:
        kind = fault(parser.read, text.encode("utf-8", "replace"))
        if kind is not None:
            found[kind] += 1
            print(kind, repr(text)[:200], flush=True)

    began = time.monotonic()
    drawn()
    faults = [[kind, times, None] for kind, times in found.items()]
    _note(parser=name, way="Hypothesis", count=count, faults=faults, seconds=round(time.monotonic() - began))


def guided(name: str, runs: int = 20_000) -> None:
    """Let atheris look for bytes that reach new lines of the package."""
    import atheris

    with atheris.instrument_imports(include=["layersearch"], enable_loader_override=False):
        from parsers import parsers

        parser = parsers()[name]
    _quietly()
    found, done, began = Counter[str](), 0, time.monotonic()

    def once(content: bytes) -> None:
        nonlocal done
        done += 1
        kind = fault(parser.read, content)
        if kind is not None:
            if not found[kind]:
                print(kind, content[:300], flush=True)
            found[kind] += 1
        if done == runs:
            faults = [[kind, times, None] for kind, times in found.items()]
            _note(parser=name, way="atheris", count=done, faults=faults, seconds=round(time.monotonic() - began))
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)

    folder = tempfile.mkdtemp()
    for number, content in enumerate(parser.seeds):
        Path(folder, str(number)).write_bytes(content)
    atheris.Setup([sys.argv[0], "-seed=1", "-max_len=4096", "-verbosity=0", "-timeout=60", folder], once)
    atheris.Fuzz()


def one(name: str, number: int) -> None:
    """Run one execution and let its exception through."""
    from parsers import parsers

    parser = parsers()[name]
    content = mutated(parser.seeds, parser.json, number)
    print(content[:2000])
    _quietly()
    print(parser.read(content))


def table() -> None:
    """Write executions by parser and way into the README, and the faults that were found on the way."""
    found: dict[str, Counter[str]] = {}
    for row in _rows():
        found.setdefault(row["parser"], Counter())[row["way"]] += row["count"]
    ways = ("mutations", "Hypothesis", "atheris")
    lines = [f"| parser | {' | '.join(ways)} |", "|---|---|---|---|"]
    for name, counts in (found | {"all": sum(found.values(), Counter[str]())}).items():
        lines.append(f"| {name} | {' | '.join(f'{counts[way]:,}' for way in ways)} |")
    kinds = sorted({f"{row['parser']}: {kind}" for row in _rows() for kind, _, _ in row["faults"]})
    lines += ["", f"Faults found: {'; '.join(kinds) or 'none'}."]
    before, _, rest = README.read_text().partition("<!-- fuzz -->\n")
    _, _, after = rest.partition("<!-- end of fuzz -->")
    README.write_text(f"{before}<!-- fuzz -->\n" + "\n".join(lines) + f"\n<!-- end of fuzz -->{after}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    match sys.argv[1:]:
        case ["batch", name, first, count]:
            batch(name, int(first), int(count))
        case ["mutate", *names]:
            mutate(names)
        case ["grow", name, *more]:
            grow(name, *map(int, more))
        case ["guided", name, *more]:
            guided(name, *map(int, more))
        case ["one", name, number]:
            one(name, int(number))
        case ["table"]:
            table()
        case _:
            print(__doc__)

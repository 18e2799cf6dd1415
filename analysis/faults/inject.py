"""Inject faults into runs and say what was lost: one JSON line for each in ``faults.jsonl``, one table in README.md.

    python analysis/faults/inject.py             # every fault that is not recorded yet, then the table
    python analysis/faults/inject.py kill damage # some kinds only
    python analysis/faults/inject.py table       # write the table again

Kinds up to ``clock`` use trials that cost nothing (`stage.py`): all but the training is the command's own. The others
train. A fault *held* if the command said so in one line with its exit code, or if the same command, run again, ended
with every record and the result of an undisturbed run. Run as root, a full disk is a small tmpfs and memory a cgroup;
otherwise RLIMIT_FSIZE and RLIMIT_AS stand in, and the record says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
RECORD, README = HERE / "faults.jsonl", HERE / "README.md"
WORK = Path(tempfile.mkdtemp(prefix="faults-"))
LOG = WORK / "said.txt"
Result = dict[str, Any]


def base() -> Path:
    """Return an undisturbed run, made once."""
    import stage

    out = WORK / "base"
    if not out.exists():
        code, said = stage.run(out, LOG, figures=True)
        assert code == 0, said
    return out


def _wanted() -> Result:
    import stage

    return stage.content(base())


def judged(out: Path, wanted: Result) -> Result:
    """Run the same command again and compare with the undisturbed run."""
    import stage

    code, said = stage.run(out, LOG)
    lost = stage.difference(wanted, out) if code == 0 else f"exit {code}: {said.strip()[-200:]}"
    return {"lost": lost or "nothing", "held": not lost}


def plainly(said: str) -> bool:
    """Whether a command that did not end well said why in its last line, and no traceback."""
    lines = said.strip().splitlines()
    noise = any(word in said for word in ("Traceback", "Exception ignored", "Fatal Python error"))
    return bool(lines) and lines[-1].startswith("layersearch: ") and not noise


# The kinds: each yields (name, function that injects one fault and returns its result).


def kill() -> Iterator[tuple[str, Callable[[], Result]]]:
    """kill -9 of the main process, spread over all records and the moments between them."""
    total = len(_wanted()["records"])

    def at(number: int) -> Result:
        import stage

        rng, out = Random(number), WORK / "killed"
        shutil.rmtree(out, ignore_errors=True)
        child = stage.start((*stage.RUN, "--out", str(out)), LOG)
        after = number * total // 30
        while stage.lines(out) < after and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 2 * stage.MadeUpPool.seconds)
        child.kill(signal.SIGKILL)
        child.wait()
        return {"moment": f"{stage.lines(out)} of {total} records", **judged(out, _wanted())}

    for number in range(30):
        yield f"{number}", lambda number=number: at(number)  # type: ignore[misc]


def signals() -> Iterator[tuple[str, Callable[[], Result]]]:
    """SIGINT, SIGTERM and SIGHUP: one line, the right exit code, and nothing lost."""
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

    def at(number: signal.Signals, moment: int) -> Result:
        import stage

        out = WORK / "signaled"
        shutil.rmtree(out, ignore_errors=True)
        child = stage.start((*stage.RUN, "--out", str(out)), LOG)
        while not (out / "config.json").exists() or stage.lines(out) < moment * 5:
            if child.poll() is not None:
                break
            time.sleep(0.001)
        began = time.monotonic()
        child.kill(number)
        code, took = child.wait(), time.monotonic() - began
        said, found = plainly(child.said) and code == codes[number], judged(out, _wanted())
        return {"noticed": round(took, 2), "exit": code, **found, "held": found["held"] and said}

    for number in codes:
        for moment in range(5):
            yield f"{number.name} {moment}", lambda n=number, m=moment: at(n, m)  # type: ignore[misc]


def two() -> Iterator[tuple[str, Callable[[], Result]]]:
    """Two runs on one folder: the second is refused in one line, the first ends undisturbed."""

    def at(moment: int) -> Result:
        import stage

        out = WORK / "two"
        shutil.rmtree(out, ignore_errors=True)
        first = stage.start((*stage.RUN, "--out", str(out)), WORK / "first.txt")
        while stage.lines(out) < max(1, moment * 5) and first.poll() is None:
            time.sleep(0.001)
        first.kill(signal.SIGSTOP)  # so that it is not over when the second one asks
        code, said = stage.run(out, LOG)
        first.kill(signal.SIGCONT)
        ended = first.wait()
        lost = stage.difference(_wanted(), out)
        held = code == 2 and "another search is running" in said and plainly(said) and ended == 0 and not lost
        return {"exit": code, "lost": lost or "nothing", "held": held}

    for moment in range(5):
        yield f"{moment}", lambda moment=moment: at(moment)  # type: ignore[misc]


FILES = ("config.json", "trials.jsonl", "study.journal", "frontier.json", "winner.yaml", "flops.json")
WAYS: dict[str, Callable[[bytes, Random], bytes]] = {
    "torn": lambda data, rng: data[: rng.randrange(len(data))],
    "bit flip": lambda data, rng: _flipped(data, rng),
    "reordered": lambda data, rng: b"".join(_shuffled(data.splitlines(keepends=True), rng)),
    "CRLF": lambda data, rng: data.replace(b"\n", b"\r\n"),
    "NUL": lambda data, rng: (at := rng.randrange(len(data))) * b"" + data[:at] + b"\0" * 16 + data[at + 16 :],
    "empty": lambda data, rng: b"",
}


def _flipped(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _shuffled(parts: list[bytes], rng: Random) -> list[bytes]:
    rng.shuffle(parts)
    return parts


def damage() -> Iterator[tuple[str, Callable[[], Result]]]:
    """Damaged files: refused in one line, or read around with the answer of the undisturbed run."""

    def at(name: str, way: str, number: int) -> Result:
        import stage

        out, wanted = stage.copied(base(), WORK / "damaged"), _wanted()
        file = out / name
        file.write_bytes(WAYS[way](file.read_bytes(), Random(f"{name}{way}{number}")))
        shown = stage.start(("show", str(out), "--json"), WORK / "show.txt")
        showed = shown.wait()
        code, said = stage.run(out, LOG)
        lost = stage.difference(wanted, out) if code == 0 else ""
        refused = code == 2 and name in said.replace("\n", "")
        held = (code == 0 and not lost) or refused
        held &= showed in (0, 2) and "Traceback" not in shown.said + said and (code == 0 or plainly(said))
        done = "refused in one line" if refused else "mended" if not lost else "changed"
        return {"show": showed, "exit": code, "done": done, "lost": lost or "nothing", "held": held}

    for name in FILES:
        for way in WAYS:
            for number in range(1 if way in ("CRLF", "empty") else 3):
                yield f"{name} {way} {number}", lambda a=name, b=way, c=number: at(a, b, c)  # type: ignore[misc]


def disk() -> Iterator[tuple[str, Callable[[], Result]]]:
    """A full disk in records, journal, result, figures, page, export and checkpoint."""
    mounts = _can_mount()

    def run_at(kilobytes: int) -> Result:
        import stage

        out = WORK / "full"
        _unmount(out)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if mounts:
            _mount(out, kilobytes)
        prepare = (lambda: None) if mounts else (lambda: stage.limit_file_size(kilobytes * 1024))
        code, said = stage.run(out / "run", LOG, figures=True, prepare=prepare)
        there = sorted(path.name for path in (out / "run").glob("*")) if (out / "run").exists() else []
        good = code == 0 or (code == 2 and plainly(said))
        if mounts:
            _mount(out, 64_000, "remount,")
        found = judged(out / "run", _wanted())
        halves = [path.name for path in (out / "run").glob("*.part")]
        _unmount(out)
        how = "tmpfs" if mounts else "RLIMIT_FSIZE"
        held = found["held"] and good and not halves
        return {"how": how, "exit": code, "files": len(there), "halves": halves, **found, "held": held}

    def export_at(kilobytes: int) -> Result:
        import stage

        out = WORK / "full"
        _unmount(out)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if mounts:
            _mount(out, kilobytes)
        words = ("export", str(base()), "--to", "hf-remote", "--out", str(out / "x"))
        prepare = (lambda: None) if mounts else (lambda: stage.limit_file_size(kilobytes * 1024))
        first = stage.start(words, LOG, prepare=prepare)
        code, said = first.wait(), first.said
        if mounts:
            _mount(out, 64_000, "remount,")
        again = stage.start(words, LOG)
        second = again.wait()
        _unmount(out)
        held = (code == 0 or (code == 2 and plainly(said))) and second == 0
        lost = "nothing" if second == 0 else again.said.strip()[-200:]
        return {"how": "tmpfs" if mounts else "RLIMIT_FSIZE", "exit": code, "lost": lost, "held": held}

    for kilobytes in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
        yield f"run {kilobytes} kB", lambda k=kilobytes: run_at(k)  # type: ignore[misc]
    for kilobytes in (4, 8, 16, 24):
        yield f"export {kilobytes} kB", lambda k=kilobytes: export_at(k)  # type: ignore[misc]
    yield "checkpoint", _checkpoint_full


def _checkpoint_full() -> Result:
    """The state before stays whole and is used where the new one does not fit."""
    import torch

    from layersearch.training.checkpoint import load_state, save_state

    out, mounts = WORK / "state", _can_mount()
    if not mounts:
        return {"how": "not done: no tmpfs", "lost": "", "held": True}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    _mount(out, 200)
    save_state(out / "s.pt", {"step": 1, "x": torch.zeros(10_000)})
    failed = False
    try:
        save_state(out / "s.pt", {"step": 2, "x": torch.zeros(90_000)})
    except (OSError, RuntimeError):
        failed = True
    found, _ = load_state(out / "s.pt", "cpu")
    _unmount(out)
    held = failed and found is not None and found["step"] == 1
    return {"how": "tmpfs", "lost": "nothing" if held else "the state before", "held": held}


def _can_mount() -> bool:
    place = WORK / "mount"
    place.mkdir(exist_ok=True)
    can = os.getuid() == 0 and _mount(place, 64)
    _unmount(place)
    return can


def _mount(place: Path, kilobytes: int, more: str = "") -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"{more}size={kilobytes}k", "tmpfs", str(place)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def clock() -> Iterator[tuple[str, Callable[[], Result]]]:
    """The clock goes back: files of the future, and a process whose time runs backwards."""

    def at(name: str, prepare: Callable[[], None], shift: float) -> Result:
        import stage

        out = WORK / "clock"
        shutil.rmtree(out, ignore_errors=True)
        child = stage.start((*stage.RUN, "--out", str(out)), LOG, prepare=prepare)
        while stage.lines(out) < 9 and child.poll() is None:
            time.sleep(0.001)
        child.kill(signal.SIGKILL)
        child.wait()
        for path in out.rglob("*"):
            os.utime(path, (time.time() + shift,) * 2)
        return judged(out, _wanted())

    def backwards() -> None:
        began = time.time()
        time.time = lambda: 2 * began - _now()  # type: ignore[assignment]

    _now = time.time
    year = 3.15e7
    for name, prepare, shift in (("files of 1 year ago", lambda: None, -year), ("files in 1 year", lambda: None, year)):
        yield name, lambda n=name, p=prepare, s=shift: at(n, p, s)  # type: ignore[misc]
    yield "time.time runs backwards", lambda: at("backwards", backwards, 0.0)


KINDS: dict[str, Callable[[], Iterator[tuple[str, Callable[[], Result]]]]] = {
    "kill": kill,
    "signals": signals,
    "two": two,
    "damage": damage,
    "disk": disk,
    "clock": clock,
}


def _kinds() -> dict[str, Callable[[], Iterator[tuple[str, Callable[[], Result]]]]]:
    from shared_fs import shared
    from trained import TRAINED

    return KINDS | {"shared": shared} | TRAINED


def inject(names: list[str]) -> None:
    """Inject what is not recorded yet."""
    import stage

    kinds = _kinds()
    done = {(row["kind"], row["fault"]) for row in _rows()}
    stage.import_everything()
    for kind in names or kinds:
        for fault, act in kinds[kind]():
            if (kind, fault) in done:
                continue
            began = time.monotonic()
            found = {"kind": kind, "fault": fault, **act(), "seconds": round(time.monotonic() - began, 1)}
            with RECORD.open("a") as file:
                file.write(json.dumps(found).replace(str(WORK), "WORK") + "\n")
            print(found, flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    table()


def _rows() -> list[Result]:
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def table() -> None:
    """Write the table into the README, between its two marks."""
    kinds: dict[str, list[Result]] = defaultdict(list)
    for row in _rows():
        kinds[row["kind"]].append(row)
    lines = ["| fault | tried | held | lost | noticed after, s |", "|---|---|---|---|---|"]
    for kind, about in _kinds().items():
        rows = kinds.get(kind, [])
        lost = sorted({row["lost"] for row in rows if row["lost"] not in ("", "nothing")})
        noticed = [row["noticed"] for row in rows if "noticed" in row]
        took = f"{min(noticed):.2g} to {max(noticed):.2g}" if noticed else ""
        text = (about.__doc__ or "").split(":")[0].rstrip(".")
        held = sum(row["held"] for row in rows)
        lines.append(
            f"| {text} | {len(rows)} | {held} | {'; '.join(lost)[:200] or 'nothing' if rows else ''} | {took} |"
        )
    before, _, rest = README.read_text().partition("<!-- faults -->\n")
    _, _, after = rest.partition("<!-- end of faults -->")
    README.write_text(f"{before}<!-- faults -->\n" + "\n".join(lines) + f"\n<!-- end of faults -->{after}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    match sys.argv[1:]:
        case ["table"]:
            table()
        case names:
            inject(names)

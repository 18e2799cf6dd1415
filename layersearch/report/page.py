"""The page itself: the template, its style and script, the plotting library, and the file.

Everything is inside one file. Its content security policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import importlib.resources
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersearch.errors import ConfigError, LayersearchError, RunFolderError
from layersearch.files import write_text
from layersearch.report.answer import size
from layersearch.report.conversion import is_conversion, open_conversion
from layersearch.report.folder import expand, open_run
from layersearch.report.payload import page_data
from layersearch.version import __version__

NAME = "report.html"
PARTS = ("page.html", "page.css", "page.js")
"""Files of this package that a page is made of."""
SOURCES = (
    *("config.json", "trials.jsonl", "frontier.json", "gates.json", "retrieval.json", "answer.json"),
    *("../answer.json", "healed/evaluations.jsonl"),
)
"""Files of a run folder that its page is made of."""
REFRESH = 15
"""Seconds after which the page of a run that goes on loads itself again."""


def check_extra() -> None:
    """Raise ConfigError if the extra that a page needs is not installed."""
    missing = [name for name in ("jinja2", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"a report needs {' and '.join(missing)}: pip install 'layersearch[report]'")


def write_report(runs: Sequence[Path | str], out: Path | str, *, watched: bool = False) -> Path:
    """Write one HTML page of run folders, finished or not, and return its path.

    Args:
        runs: folders of ``run``, ``optimal-l`` or ``convert``; two or more stand side by side.
        out: the file. It is written beside and renamed, so a failure keeps the old page.
        watched: the page loads itself again every `REFRESH` seconds, and nothing is predicted for it.

    Raises:
        LayersearchError: if a folder is no run or damaged, the file cannot be written, or the extra is missing.

    Example:
        >>> from layersearch.report.page import write_report
        >>> write_report(["runs/mine"], "report.html")  # doctest: +SKIP
    """
    check_extra()
    folders = expand([Path(run) for run in runs])
    mark = _mark(folders)  # before they are read: what changes meanwhile makes the page an old one
    text = page_text(folders, watched=watched)
    if not watched:
        text += f"<!-- {mark} {_digest(text.encode())} -->\n"
    out = Path(out)
    try:
        if out.is_dir():
            raise RunFolderError(f"--out {out}: a folder stands there; name a file such as {out / NAME}")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise RunFolderError(
            f"--out {out}: cannot be written ({error.strerror or error}); free space or name another file; an old page "
            "is kept"
        ) from None
    return out


def page_text(paths: Sequence[Path], *, watched: bool = False) -> str:
    """Return the page of run folders; see `write_report` for errors."""
    import jinja2

    opened = [open_conversion(path) if is_conversion(path) else open_run(path) for path in expand(paths)]
    page = page_data(opened, quick=watched)
    for run in page["runs"]:
        for schedule in run["schedules"]:
            schedule["kv_text"] = "" if schedule["kv"] is None else size(schedule["kv"])
    page["tile_labels"] = list(dict.fromkeys(tile["label"] for run in page["runs"] for tile in run["tiles"]))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_file("page.html")).render(
        page=page,
        css=_file("page.css"),
        js=script,
        hash=f"'sha256-{digest}'",
        data=script_json(page),
        plotly=plotly_text(),
        refresh=REFRESH if watched else None,
    )


def script_json(value: Any) -> str:
    """Return JSON that no data can end: a script element or a line of JavaScript holds it whole."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and U+2029 are escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.lru_cache(maxsize=1)
def plotly_text() -> str:
    """Return plotly.js of the installed package, as gzip in base64."""
    source = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    try:
        return base64.b64encode(gzip.compress(source.read_bytes(), mtime=0)).decode()
    except OSError:
        raise ConfigError(
            "plotly is installed without its plotly.min.js: pip install --force-reinstall 'layersearch[report]'"
        ) from None


def _file(name: str) -> str:
    return _shipped(name).read_text(encoding="utf-8")


def _shipped(name: str) -> Path:
    return Path(__file__).with_name(name)


def report_beside(run: Path) -> str:
    """Write a run's page into its folder, and return one line for the user: its path, or why there is none.

    A page of the same files is left as it is.
    """
    try:
        out = run / NAME
        return f"Report: {out if _is_current(out, expand([run])) else write_report([run], out)}"
    except LayersearchError as error:
        return f"No {NAME}: {error}"


def _mark(folders: Sequence[Path]) -> str:
    """Return what tells whether a page would be the same: this version, and the content of all files it is made of."""
    held = hashlib.sha256(__version__.encode())
    for file in (*(_shipped(name) for name in PARTS), *(folder / name for folder in folders for name in SOURCES)):
        held.update(f"\n{file}\n".encode())
        with contextlib.suppress(OSError):
            held.update(hashlib.sha256(file.read_bytes()).digest())
    return held.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_current(page: Path, folders: Sequence[Path]) -> bool:
    """Return whether a page is whole, and made of the files as they are."""
    try:
        text, _, last = page.read_bytes().rpartition(b"<!-- ")
    except OSError:
        return False
    return last == f"{_mark(folders)} {_digest(text)} -->\n".encode()

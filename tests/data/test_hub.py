"""Hub data sets and tokenizers, from a small server that speaks the hub's protocol, and from a hub that is down."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import layersearch

ROOT = Path(layersearch.__file__).parent.parent
COMMIT = "a" * 40


def words() -> str:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "hello": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


ROWS = "".join(json.dumps({"body": f"document {number} says hello " * 9}) + "\n" for number in range(40))
REPOSITORIES = {
    "datasets/me/tiny": {"data.jsonl": ROWS.encode()},
    "datasets/me/broken": {"data.jsonl": (ROWS + '{"body": oops}\n').encode()},
    "me/words": {"tokenizer.json": words().encode()},
    "me/empty": {"README.md": b"nothing"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few requests of the hub's protocol that `datasets` and the client make."""

    protocol_version = "HTTP/1.1"

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if not path:
            return self.answer(200)
        api = path.startswith("api/")
        path = path.removeprefix("api/")
        name = next((name for name in REPOSITORIES if path.startswith(name + "/") or path == name), None)
        if name is None:
            return self.answer(404, **{"X-Error-Code": "RepoNotFound"})
        files = REPOSITORIES[name]
        if not api:
            content = files.get(path.rsplit("/", 1)[1])
            if content is None:
                return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            return self.answer(200, content, ETag='"tag"')
        listing: object = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": []}
        if "/tree/" in path:
            listing = [{"type": "file", "path": key, "size": len(files[key]), "oid": "b" * 40} for key in files]
        return self.answer(200, json.dumps(listing).encode(), **{"Content-Type": "application/json"})

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def dead() -> Iterator[tuple[str, list[str]]]:
    """Return a hub that hangs up on every caller, and the paths it was asked for."""
    asked: list[str] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:
                return
            with caller:
                asked.append(caller.recv(4096).split(b" ")[1].decode())

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def ask(home: Path, endpoint: str, *configurations: dict[str, object], **environment: str) -> list[list[object]]:
    """Open each source in one fresh process, as the hub's settings are read when it starts.

    Returns:
        ``["ok", facts]`` or ``["error", line]`` for each.
    """
    script = """
import json, sys
from pathlib import Path
from layersearch.data import describe, open_source
from layersearch.errors import DataError
from layersearch.config.data import DataConfig
for number, config in enumerate(json.loads(sys.argv[1])):
    try:
        print(json.dumps(["ok", describe(open_source(DataConfig(**config), 16, Path(sys.argv[2], str(number))))]))
    except DataError as error:
        print(json.dumps(["error", str(error)]))
"""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1", **environment}
    cache = home / f"cache-{len(list(home.iterdir()))}"
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(configurations), str(cache)],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


TINY = {"source": "hub", "dataset": "me/tiny", "column": "body", "vocab_size": 280}


@pytest.mark.slow
def test_hub_data_set_is_read_streamed_and_offline_from_its_copy(hub, dead, tmp_path):
    streamed, whole, named = ask(tmp_path, hub, TINY | {"streaming": True}, TINY, TINY | {"tokenizer": "me/words"})
    assert streamed[0] == whole[0] == named[0] == "ok"
    assert streamed[1]["fingerprint"] == whole[1]["fingerprint"] != named[1]["fingerprint"]
    assert whole[1]["train_documents"] + whole[1]["validation_documents"] == 40
    assert named[1]["vocab_size"] == 3
    for endpoint, environment in ((dead[0], {}), (hub, {"HF_HUB_OFFLINE": "1"})):
        whole_again, named_again = ask(tmp_path, endpoint, TINY, TINY | {"tokenizer": "me/words"}, **environment)
        assert whole_again[1]["fingerprint"] == whole[1]["fingerprint"]
        assert named_again[1]["fingerprint"] == named[1]["fingerprint"]


@pytest.mark.slow
def test_hub_that_is_down_is_asked_once(dead, tmp_path):
    endpoint, paths = dead
    asked = [
        (TINY | {"streaming": True}, "data.dataset me/tiny"),
        (TINY, "data.dataset me/tiny"),
        ({"source": "stdlib", "tokenizer": "me/words"}, "data.tokenizer me/words"),
    ]
    answers = ask(tmp_path, endpoint, *(config for config, _ in asked))
    assert paths.count("/") == len(asked)
    assert not [path for path in paths if "me/" in path]
    for (_, key), (state, line) in zip(asked, answers, strict=True):
        assert state == "error"
        assert line.startswith(f"{key}: {endpoint} does not answer and there is no local copy; connect, or give ")


@pytest.mark.slow
def test_hub_offline_mode_is_reported_and_asks_nobody(dead, tmp_path):
    endpoint, paths = dead
    ((state, line),) = ask(tmp_path, endpoint, TINY, HF_HUB_OFFLINE="1")
    assert state == "error"
    assert line.startswith("data.dataset me/tiny: HF_HUB_OFFLINE is set and there is no local copy; connect, or give ")
    assert paths == []


@pytest.mark.slow
def test_hub_missing_repository_or_file_is_named(hub, tmp_path):
    asked = {
        "data.dataset me/none cannot be loaded (": TINY | {"dataset": "me/none"},
        "data.dataset me/tiny cannot be loaded (BuilderConfig 'de' not found": TINY | {"subset": "de"},
        "data.dataset me/tiny: no column 'text'; set data.column to one of body": TINY | {"column": "text"},
        "data.dataset me/broken cannot be read (": TINY | {"dataset": "me/broken", "streaming": True},
        "data.tokenizer me/none cannot be loaded (": {"source": "stdlib", "tokenizer": "me/none"},
        "data.tokenizer me/empty cannot be loaded (": {"source": "stdlib", "tokenizer": "me/empty"},
    }
    for start, (state, line) in zip(asked, ask(tmp_path, hub, *asked.values()), strict=True):
        assert state == "error"
        assert line.startswith(start)

"""Run one engine on some requests, in the engine's own environment: ``python run.py ENGINE REQUESTS RESULTS``.

The engines pin other versions than layersearch, so nothing of layersearch is imported here. ``ENGINE_engine.py`` beside
this file holds the engine. It is imported once, and each request of several has a process of its own. REQUESTS is a
list of mappings in JSON:

- ``model``: the folder or file that the engine loads;
- ``text``: token ids; the result has the log-probability of each but the first, ``logprobs``;
- ``generate``: list of [prompt, new]; ``new`` greedy tokens after the text's first ``prompt`` tokens;
- ``bench``: list of [tokens, new]; times and held KV bytes with a text of ``tokens`` tokens, then ``new`` more;
- ``options``: what the engine alone understands.

RESULTS is a folder: 0.json, 1.json and so on. An error of the engine is ``{"error": text}``.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def answer(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Load the model and do what the request asks."""
    text = request["text"]
    model = engine.Model(request["model"], len(text), request["options"])
    result: dict[str, Any] = {"version": engine.version()}
    if request.get("logprobs"):
        result["logprobs"] = model.logprobs(text)
    result["generated"] = []
    for prompt, new in request.get("generate", ()):
        tokens, logprobs = model.generate(text[:prompt], new)
        result["generated"].append({"prompt": prompt, "tokens": tokens, "logprobs": logprobs})
    result["bench"] = []
    for tokens, new in request.get("bench", ()):
        if not result["bench"]:
            model.bench(text[:32], 2)  # the first pass pays for what is set up once
        result["bench"].append({"tokens": tokens, "new": new, **model.bench(text[:tokens], new)})
    result["peak_rss_bytes"] = peak_rss_bytes()
    return result


def peak_rss_bytes() -> int:
    """Return the most memory that this process held, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux, where ru_maxrss may be that of the parent process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name: str, request: dict[str, Any], out: Path) -> None:
    """Answer one request, and end the process: some engines end theirs with an error of their own."""
    try:
        result = answer(importlib.import_module(f"{name}_engine"), request)
    except Exception as error:  # engines raise many kinds; all of them are the caller's to report
        result = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Read the requests, write the results."""
    name, file, out = sys.argv[1:]
    requests = json.loads(Path(file).read_text(encoding="utf-8"))
    if len(requests) > 1:
        importlib.import_module(f"{name}_engine")
    for index, request in enumerate(requests):
        if len(requests) == 1 or os.fork() == 0:
            run(name, request, Path(out, f"{index}.json"))
        os.wait()


if __name__ == "__main__":
    main()

"""Run one engine on one request, in the engine's own environment: ``python run.py ENGINE REQUEST RESULT``.

The engines pin other versions than layersearch, so nothing of layersearch is imported here. ``ENGINE_engine.py`` beside
this file holds the engine. A request is JSON:

- ``model``: the folder or file that the engine loads;
- ``text``: token ids; the result has the log-probability of each but the first, ``logprobs``;
- ``generate``: list of [prompt, new]; ``new`` greedy tokens after the text's first ``prompt`` tokens;
- ``bench``: list of [tokens, new]; times and held KV bytes with a text of ``tokens`` tokens, then ``new`` more;
- ``options``: what the engine alone understands.

The result is JSON too. An error of the engine is ``{"error": text}``.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def answer(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Load the model and do what the request asks."""
    engine = importlib.import_module(f"{name}_engine")
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
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def main() -> None:
    """Read the request, write the result."""
    name, request, out = sys.argv[1:]
    try:
        result = answer(name, json.loads(Path(request).read_text(encoding="utf-8")))
    except Exception as error:  # engines raise many kinds; all of them are the caller's to report
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(out).write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some engines end their process with an error of their own


if __name__ == "__main__":
    main()

"""Studies of SmolLM2-135M: which layers, which method, which spans, and what healing changes. See README.md.

python analysis/smollm2/study.py contest MODEL.gguf                 # methods at equal units, three draws
python analysis/smollm2/study.py seconds MODEL.gguf                 # two of them timed in turns, one thread
python analysis/smollm2/study.py spaces MODEL.gguf                  # one window or several, sinks or none
python analysis/smollm2/study.py layers MODEL.gguf --prose FILES    # texts, lengths, budgets, goals
python analysis/smollm2/study.py heal MODEL.gguf                    # before and after healing
python analysis/smollm2/study.py report                             # tables.md from the committed records alone

Every study resumes: a record is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
from types import ModuleType

import contest
import heal
import layers
import spaces
from bench import HERE, RECORDS

STUDIES: dict[str, tuple[ModuleType, str, str]] = {
    "contest": (contest, "contest", "Methods of choosing layers"),
    "spaces": (spaces, "spaces-held-out", "One window or several, sinks or none"),
    "layers": (layers, "layers", "Which layers: text, length, budget, goal"),
    "heal": (heal, "heal", "Before and after healing"),
}
"""Each study's module, its last file of records, and its title."""
LONG_HEALING = "Before and after a longer healing"


def report() -> str:
    """Return the tables of every study that has records."""
    out = ["# SmolLM2-135M: tables", "", "Written by `study.py report` from `records/`.", ""]
    for module, name, title in STUDIES.values():
        if (RECORDS / f"{name}.jsonl").exists():
            out += [f"## {title}", "", *module.table(), ""]
    if (RECORDS / "heal-long.jsonl").exists():
        out += [f"## {LONG_HEALING}", "", *heal.table("heal-long"), ""]
    return "\n".join(out)


def main() -> None:
    """Run one study, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=(*STUDIES, "seconds", "report"))
    parser.add_argument("model", nargs="?", help="the GGUF file")
    parser.add_argument("--prose", nargs="+", default=(), help="files or folders of English prose")
    parser.add_argument("--most", type=int, help="layers: only so many conditions, the first of its list")
    parser.add_argument("--lengths", type=int, help="layers: measure the choices at so many lengths only")
    parser.add_argument("--device", default="cpu", help="contest, layers and heal: cpu or cuda:N")
    parser.add_argument("--steps", type=int, default=heal.STEPS, help="heal: optimizer steps")
    parser.add_argument("--rows", type=int, default=1, help="heal: sequences of a step")
    parser.add_argument("--shard", default="0/1", help="heal: K/N, every N-th schedule from the K-th on")
    options = parser.parse_args()
    if options.study == "report":
        (HERE / "tables.md").write_text(report())
        return
    if options.model is None:
        parser.error("MODEL is missing: give the GGUF file")
    if options.study == "seconds":
        contest.seconds(options.model, options.prose)
        return
    taken = {
        "contest": ("device",),
        "layers": ("device", "most", "lengths"),
        "heal": ("device", "steps", "rows", "shard"),
    }
    more = taken.get(options.study, ())
    STUDIES[options.study][0].run(options.model, options.prose, **{key: getattr(options, key) for key in more})


if __name__ == "__main__":
    main()

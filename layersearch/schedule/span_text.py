"""The text form of a span, for example ``window:512/2@2+sink:4``, read into the fields of a `Span`."""

import re
from typing import Any

from layersearch.errors import ConfigError, require

KINDS: tuple[str, ...] = ("full", "window", "block", "strided", "fixed", "bigbird", "memory")
GRAMMAR = (
    "full, window:W, window:W/D, window:W/D@H, block:B or block:B~O, then any of +sink:G, +global:first:G, "
    "+global:mask:G, +summary:G, +las:B, +las:B/P; or "
    "strided:L, strided:L@H, fixed:L/C, fixed:L/C@H, bigbird:B/R, bigbird:B/R/S or memory:M/S; then *N"
)

_WORDS = {
    "dilated_heads": "number of heads",
    "far_heads": "number of heads",
    "random_blocks": "number of random blocks",
    "columns": "columns",
}


def read_fields(text: str) -> dict[str, Any]:
    """Return the fields that a term names.

    Raises:
        LayersearchError: the term has another form; the message names the expected one.
    """
    base, *extras = re.split(r"\+(?=[^\d])", text.strip())
    match = re.fullmatch(
        r"(?P<kind>[A-Za-z_]+)(:(?P<size>[^/@~]*)(/(?P<second>[^@~]*))?(@(?P<heads>[^~]*))?(~(?P<offset>.*))?)?",
        base,
    )
    if match is None:
        raise ConfigError(f"{text!r}: expected {GRAMMAR}")
    kind = match["kind"]
    require(kind in KINDS, f"{text!r}: expected {GRAMMAR}", kind, KINDS)
    values: dict[str, Any] = {"kind": kind}
    by_head = "far_heads" if kind in ("strided", "fixed") else "dilated_heads"
    # A window's heads stand behind its dilation.
    form = match["heads"] is None or by_head == "far_heads" or match["second"] is not None
    require(form, f"{text!r}: expected {GRAMMAR}")
    require(kind != "bigbird" or match["second"] is not None, f"{text!r}: bigbird:B/R needs a number R, such as /2")
    named = {"size": match["size"], by_head: match["heads"], "offset": match["offset"]}
    if kind == "memory":
        named["memory"] = match["size"]
    second = {"fixed": "columns", "bigbird": "random_blocks", "memory": "size"}.get(kind, "dilation")
    named[second] = match["second"]
    if kind == "bigbird" and match["second"] is not None:
        named[second], slash, seed = match["second"].partition("/")
        named["seed"] = seed if slash else None
    for name, number in named.items():
        if number is not None:
            values[name] = _whole(number, _WORDS.get(name, name), text)
    require(values.get("offset") != 0, f"{text!r}: an offset of 0 changes nothing; drop '~0'")
    for extra in extras:
        name, _, value = extra.partition(":")
        if name == "global" and not {"global_first", "global_marked"} & set(values):
            which, colon, count = value.partition(":")
            field = {"first": "global_first", "mask": "global_marked"}.get(which)
            if field is None:
                raise ConfigError(f"{text!r}: expected +global:first:G or +global:mask:G, found '+{extra}'")
            # The task's own mask marks one token where no number is given, as for a classification.
            values[field] = 1 if which == "mask" and not colon else _whole(count, "number of global tokens", text)
            require(values[field] >= 1, f"{text!r}: at least 1 token is global; drop '+{extra}'")
        elif name == "summary" and "summary" not in values:
            values["summary"] = _whole(value, "tokens of a summary", text)
            require(values["summary"] >= 1, f"{text!r}: a summary has at least 2 tokens; drop '+summary:0'")
        elif name == "sink" and "sink" not in values:
            values["sink"] = _whole(value, "sink", text)
            require(values["sink"] >= 1, f"{text!r}: sink must be at least 1 token; drop '+sink:0'")
        elif name == "las" and "decay" not in values:
            decay, slash, pool = value.partition("/")
            try:
                values["decay"] = float(decay)
            except ValueError:
                raise ConfigError(f"{text!r}: expected a number after 'las:', found {decay!r}") from None
            if slash:
                values["pool"] = _whole(pool, "pooling width", text)
            changes = values["decay"] != 0.0 or values.get("pool", 1) != 1
            require(changes, f"{text!r}: 'las:0' without pooling changes nothing; drop it")
        else:
            raise ConfigError(
                f"{text!r}: expected +sink:G, +global:first:G, +global:mask:G, +summary:G or +las:B[/P], each once, "
                f"found '+{extra}'"
            )
    return values


def _whole(text: str, what: str, term: str) -> int:
    whole = re.fullmatch(r"-?\d{1,18}", text)
    require(whole, f"{term!r}: expected a whole number for the {what}, found {text!r}")
    return int(text)

"""The text of an HTML page: without tags, comments, scripts and styles."""

from __future__ import annotations

from html.parser import HTMLParser

_GAPS = ("", " ", "\n", "\n\n")
_INLINE = frozenset(
    (
        *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd"),
        *("mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
    )
)
_GAP_OF_TAG = {"td": 1, "th": 1, "br": 2, "li": 2, "tr": 2, "dt": 2, "dd": 2, "option": 2}


def html_text(page: str) -> str:
    """Return the text that a browser would show; a blank line stands between blocks.

    Example:
        >>> from layersearch.data.html_text import html_text
        >>> html_text("<h1>Tea</h1><script>x()</script><p>Boil <b>wat</b>er, &amp;\\n wait.</p>")
        'Tea\\n\\nBoil water, & wait.'
    """
    parser = _Page()
    parser.feed(page)
    parser.close()
    return "".join(parser.pieces)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.gap = 0  # of `_GAPS`, before the next word
        self.hidden = self.verbatim = 0  # depth in script or style, and in pre

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag(tag, 1)

    def handle_endtag(self, tag: str) -> None:
        self._tag(tag, -1)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._tag(tag, 0)

    def _tag(self, tag: str, step: int) -> None:
        self.hidden = max(0, self.hidden + step * (tag in ("script", "style")))
        self.verbatim = max(0, self.verbatim + step * (tag == "pre"))
        if tag not in _INLINE:
            self.gap = max(self.gap, _GAP_OF_TAG.get(tag, 3))

    def handle_data(self, data: str) -> None:
        words = data if self.verbatim else " ".join(data.split())
        if self.hidden or not words:
            self.gap = max(self.gap, int(not self.hidden))
            return
        blank_before, blank_after = (not self.verbatim and edge.isspace() for edge in (data[0], data[-1]))
        self.pieces += [_GAPS[max(self.gap, int(blank_before))] if self.pieces else "", words]
        self.gap = int(blank_after)

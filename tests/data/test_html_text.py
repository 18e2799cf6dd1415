"""The text of HTML pages."""

from __future__ import annotations

import pytest

from layersearch.data.html_text import html_text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>a  b\n c</p>", "a b c"),
        ("a<b>b</b>c <i>d</i>", "abc d"),
        ("<h1>a</h1><p>b<p>c", "a\n\nb\n\nc"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<ul><li>a<li>b</ul>c", "a\nb\n\nc"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</table>", "a b\nc"),
        ("a<script>if (x < 1) { y('<p>') }</script>b<STYLE>p {}</STYLE>c<!-- d --><!doctype e>", "a\n\nb\n\nc"),
        ("&lt;b&gt; &amp; &eacute;&#233;&nbsp;x", "<b> & éé x"),
        ("a<pre>x:\n  <b>y</b>\n  z</pre>b", "a\n\nx:\n  y\n  z\n\nb"),
        ("a<script>never closed", "a"),
        ("</p></script>a", "a"),
        ("", ""),
    ],
)
def test_html_text_page_becomes_what_a_browser_shows(page: str, text: str) -> None:
    assert html_text(page).strip() == text

"""Notes in Markdown: whoever writes them, nothing of them runs, fetches or leads where it should not."""

from __future__ import annotations

import re

import pytest

from appliance.web.pages.notes import TEXT_LIMIT, to_html

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))",
    "![x](https://tracker.example/p.png)", "[x](data:text/html,<script>alert(1)</script>)", "<a href='javascript:1'>x</a>",
    "[x](<javascript:alert(1)>)", "`<svg onload=alert(1)>`", "[a]: javascript:alert(1)\n\n[a]", "<style>*{display:none}</style>",
    "<iframe src=//evil.example></iframe>", "[x](vbscript:x)", "<details open ontoggle=alert(1)>", "&lt;script&gt;",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_and_scripts_stay_text(text: str) -> None:
    html = str(to_html(f"before\n\n{text}\n\nafter"))
    assert "before" in html
    assert "after" in html
    tags = re.findall(r"<([a-z]+)([^>]*)>", html)
    assert not {name for name, _ in tags} & {"script", "img", "svg", "iframe", "style", "details", "object"}
    assert not any(re.search(r"\son|javascript:|vbscript:|data:|\sstyle|\ssrc", rest, re.I) for _, rest in tags)


def test_markdown_becomes_elements_below_the_pages_own_headings() -> None:
    html = str(to_html("# Title\n\n- a **b**\n\n| x |\n|---|\n| y |\n\n[z](https://example.org)"))
    for piece in ("<h3>Title</h3>", "<strong>b</strong>", "<td>y</td>", 'href="https://example.org"', "noreferrer"):
        assert piece in html
    assert "<h1" not in html


def test_an_endless_text_and_deep_nesting_are_bounded() -> None:
    assert len(to_html("x" * (TEXT_LIMIT * 2))) < TEXT_LIMIT + 100
    to_html(">" * 5000 + "x")
    to_html("[" * 5000)

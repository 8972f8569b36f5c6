"""Notes of guests: Markdown to HTML that is safe whoever wrote it.

Markup in the text is text (markdown-it's `html` is off), pictures are not fetched, links leave without a referrer; what comes
out passes an allowlist of elements and attributes (nh3) all the same.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from appliance.lazy import LazyModule

if TYPE_CHECKING:
    import markdown_it
    import markupsafe
    import nh3
else:
    markdown_it = LazyModule("markdown_it")
    markupsafe = LazyModule("markupsafe")
    nh3 = LazyModule("nh3")

TEXT_LIMIT = 64 << 10
NESTING_LIMIT = 20
TAGS = frozenset({
    "a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
})  # fmt: skip
_HEADINGS = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6", "h6": "h6"}
"""The page has headings of its own above the notes'."""


@functools.lru_cache(maxsize=256)
def to_html(text: str) -> markupsafe.Markup:
    """The notes as safe HTML. Never raises: what cannot be read as Markdown is shown as it stands."""
    if len(text) > TEXT_LIMIT:
        return markupsafe.Markup("<pre>{}</pre>").format(text[:TEXT_LIMIT])
    tokens = _parser().parse(text)
    for token in tokens:
        token.tag = _HEADINGS.get(token.tag, token.tag)
    html = _parser().renderer.render(tokens, _parser().options, {})
    clean = nh3.clean(
        html,
        tags=set(TAGS),
        attributes={"a": {"href"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return markupsafe.Markup(clean)


@functools.cache
def _parser() -> markdown_it.MarkdownIt:
    options = {"html": False, "linkify": False, "typographer": False, "breaks": True, "maxNesting": NESTING_LIMIT}
    return (
        markdown_it.MarkdownIt("commonmark", options)
        .enable(["table", "strikethrough"])
        .disable(["image", "html_block", "html_inline"])
    )

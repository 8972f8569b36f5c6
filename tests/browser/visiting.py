"""Going to a page of a real appliance while other tests' networks come and go.

Chromium drops what it is loading when an interface of the host changes (ERR_NETWORK_CHANGED): a navigation fails, or the
page has itself fetched again (static/js/whole.js), which may overtake ours.
"""

from __future__ import annotations

from playwright.sync_api import Error, Page

TRIES = 4


def visit(page: Page, path: str) -> None:
    """Go there, until all of the page has arrived."""
    for left in reversed(range(TRIES)):
        try:
            page.goto(path, wait_until="commit")
            break
        except Error:
            if not left:
                raise
            page.wait_for_timeout(300)
    page.wait_for_selector("html[data-whole]", state="attached")

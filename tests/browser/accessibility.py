"""axe-core in a page: what it finds against WCAG 2.2 A and AA and its best practices, as lines for people.

The script is evaluated through the browser's debugging protocol, so that the page's content security policy stays as it is.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from playwright.async_api import Page

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """async (tags) => {
  const found = await axe.run(document, { runOnly: { type: "tag", values: tags }, resultTypes: ["violations"] });
  return found.violations.map((rule) => ({ id: rule.id, help: rule.help, nodes: rule.nodes.map((node) => node.html) }));
}"""


@functools.cache
def _axe() -> str:
    return AXE.read_text()


async def violations(page: Page, *, where: str) -> list[str]:
    """One line for each rule that is violated, with the first element."""
    if not await page.evaluate("typeof axe === 'object'"):
        await page.evaluate(_axe())
    found: list[dict[str, Any]] = await page.evaluate(RUN, TAGS)
    return [f"{where}: {each['id']}: {each['help']}: {each['nodes'][0][:200]} ({len(each['nodes'])})" for each in found]

"""What one run of the command line carries: the connection, and how replies are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.cli.client import Api


@dataclass(slots=True)
class Context:
    """One run of the command line."""

    api: Api
    output: str = "table"
    wait: bool = True

    def show(self, value: Any, columns: Sequence[str] = ()) -> None:
        """Print a reply."""
        from appliance.cli.output import render

        if text := render(value, self.output, columns):
            print(text)

    def finish(self, value: Any) -> None:
        """Print a reply, after waiting for its task when it is one. Raises `CliError` when the task failed."""
        from appliance.cli.waiting import follow, is_upid

        if not (self.wait and is_upid(value)):
            self.show(value)
            return
        status = follow(self.api, value, out=sys.stderr if self.output == "json" else sys.stdout)
        if self.output == "json":
            self.show(status)

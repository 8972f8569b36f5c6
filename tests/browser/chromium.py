"""The browser that tests and benchmarks drive, as `./dev` installs it."""

from __future__ import annotations

CHROMIUM = "/usr/bin/chromium-headless-shell"
"""The engine without the windows around it: a quarter less work than the whole browser with its window hidden."""
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

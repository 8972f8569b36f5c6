"""What methods that reach inside a guest have in common, by a VM's agent or in a container."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

UNRESTRICTED = "VM.GuestAgent.Unrestricted"
FilePath = Annotated[str, Meta(min_length=1, max_length=4096, description="path inside the guest")]
Expected = Annotated[
    str, Meta(pattern=r"^([0-9a-f]{64}|absent)$", description="refuse unless this is its SHA-256 before")
]

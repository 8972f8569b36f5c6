"""What services need from the layers below, as Protocols. Engines fulfil them structurally and import only `model`.

engine          starts guests, finds them again        volumes           a storage: volumes, snapshots, files
running_guest   a guest that runs                      archives          looked into, not unpacked
console         its console                            ct_trees          filled, packed, copied: containers' files
hotplug         its disks and NICs come and go         application_logs  what application containers said
disk_moves      its disks move to other images         network           bridges and guests' ports

Only values, file descriptors and callbacks cross these seams, so that an engine may later live in another process.
Everything here runs on the loop; engines put blocking work into threads or helper processes themselves.
"""

from __future__ import annotations

from collections.abc import Callable

LogLine = Callable[[str], None]
"""Takes one line for the task's log; never waits, never fails."""

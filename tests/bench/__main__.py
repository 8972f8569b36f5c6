"""`./dev bench [GROUP] [--json]`: figures of the product on this machine, printed as they are taken."""

from __future__ import annotations

import argparse
import sys

from tests.bench import core, ct, ui, vmm, vmm_lab
from tests.bench.figures import collect, report

GROUPS = {
    "core": core.BENCHMARKS,
    "ct": ct.BENCHMARKS,
    "ui": ui.BENCHMARKS,
    "vmm": vmm.BENCHMARKS,
    "vmm-lab": vmm_lab.BENCHMARKS,
}
WHEN_ASKED = frozenset({"vmm-lab"})


def main() -> int:
    """Exit status 1 when a figure could not be taken; a goal that is not met is printed, not an error."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("group", nargs="?", choices=sorted(GROUPS))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", metavar="NAME", help="just the benchmark of this name")
    options = parser.parse_args()
    groups = [options.group] if options.group else [name for name in GROUPS if name not in WHEN_ASKED]
    chosen = [benchmark for name in groups for benchmark in GROUPS[name]]
    chosen = [b for b in chosen if options.only in (None, b.__name__)]
    return report(collect(chosen), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())

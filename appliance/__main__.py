"""The one executable: `appliance serve …` is the process, everything else its command line. argv only; imports late.

Nothing heavy may be imported before it is known what is asked: `appliance --version` answers in a tenth of a second.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Exit status: 0 done, 1 failed, 2 usage."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        from appliance.version import VERSION

        sys.stdout.write(f"appliance {VERSION}\n")
        return 0
    if arguments[:1] == ["serve"]:
        import gc

        gc.disable()  # imports only make; `serve` enables it again
        from appliance.serve import main as serve

        return serve(arguments[1:])
    if arguments[:1] == ["doctor"] or arguments == ["help", "doctor"]:
        from appliance.doctor.main import main as doctor

        return doctor(["--help"] if arguments[0] == "help" else arguments[1:])
    from appliance.cli.main import main as command_line

    return command_line(arguments)


if __name__ == "__main__":
    sys.exit(main())

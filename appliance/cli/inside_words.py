"""The verbs of `inside.py` and `agent.py`, which are loaded only for them: how they are used, and for what."""

from __future__ import annotations

USAGE = {
    "ct": {
        "exec": "appliance ct exec VMID [--uid N] [--gid N] [--cwd DIR] [--env NAME=VALUE] [--timeout S] -- PROGRAM [ARG …]",
        "push": "appliance ct push VMID FILE PATH [--mode 0644] [--uid N] [--gid N] [--parents]",
        "pull": "appliance ct pull VMID PATH FILE",
        "edit": "appliance ct edit VMID PATH",
        "enter": "appliance ct enter VMID",
    },
    "vm": {
        "exec": "appliance vm exec VMID [--timeout S] -- PROGRAM [ARG …]",
        "push": "appliance vm push VMID FILE PATH",
        "pull": "appliance vm pull VMID PATH FILE",
    },
}
SUMMARY = {
    "ct": {
        "exec": "run a program in it; its exit status becomes this one's",
        "push": "write a file into it; - is the standard input",
        "pull": "read a file out of it; - is the standard output",
        "edit": "change a file in it with $EDITOR",
        "enter": "a shell of its root in this terminal; Ctrl-] leaves",
    },
    "vm": {
        "exec": "run a program in it by its guest agent; its exit status becomes this one's",
        "push": "write a small file into it by its guest agent; - is the standard input",
        "pull": "read a file out of it by its guest agent; - is the standard output",
    },
}

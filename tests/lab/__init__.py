"""The lab: Debian hosts under QEMU's software emulation of AMD SVM, where the appliance is proven on a real host.

    recipe.py          what a lab host holds: packages, files, scripts (data only)
    image.py           its disk, kernel and initial RAM disk, built once from Debian's packages and cached in .build/lab
    guest_files.py     kernels and an initial RAM disk for guests inside of it: /opt/guest
    vmlinux.py, cpio.py    an ELF kernel out of a bzImage; archives the kernel unpacks at boot
    emulator.py        one QEMU process and its control socket
    emulator_program.py  which QEMU: a newer one of the release's backports, where this system's is too old
    wire.py            the network between hosts: a switch with cables that can be cut
    host.py            `LabHost`: a host as tests use it
    guest_console.py   the other end of the command protocol spoken by /opt/guest's initial RAM disk
    __main__.py        `./dev lab`

Tests are marked `lab` and left out unless asked for: `./dev lab test`. See docs/lab.md.
"""

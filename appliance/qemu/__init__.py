"""The QEMU engine: virtual machines in QEMU processes that outlive the appliance.

Map, from the bottom:
    options          escaping of QEMU's option syntaxes
    process          launching, watching (pidfd) and identifying the QEMU process
    run_dir          what one running VM keeps under RUN_DIR/vm/ID, and the record an adoption reads
    groups           each QEMU's control group
    capabilities     what this host's QEMU, KVM and firmware can do
    launch, pci, cpu, devices, drives, command_line
                     pure: VmSpec + VmResources + Launch -> argv; refusal: why not
    firmware, cloud_init, prepare
                     what must lie on disk before a launch
    monitor          QMP; console: a serial port's socket and log; agent: the guest agent's port
    ports            those ends of a running VM together; stats, ending: pure judgements on it
    vm               RunningVm, one guest that runs
    engine           QemuEngine: probe, refuse, start, adopt

It imports `model`, the leaves and `kernel` only, and fulfils `services/ports` structurally.
"""

"""The ISA and platform devices of a PC: what firmware and old drivers find at fixed ports.

One device, one file: serial, rtc, i8042, fw_cfg, acpi_pm, pvpanic, vmgenid, watchdog (on PCI), debug_port, port92. The
reset port 0xcf9 lies in the middle of PCI's configuration ports and is `pci.bus`'s. All claim their ports when made and
give them back in `close`. None of them stalls a vCPU: what they say to the outside is bounded and lost when nobody takes
it.
"""

"""virtio 1.2 devices: what a device is (`device`), its rings (`queue`), how PCI shows it (`pci_transport`), and the devices.

Read `rng` first: it is the smallest. Modern devices only, split rings, event idx and indirect descriptors.
"""

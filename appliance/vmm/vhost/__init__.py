"""Queues served by the kernel (drivers/vhost): what we tell it (`rings`), what it writes to memory (`log`), and the two
devices it knows (`net`, `vsock`). Status, configuration and the other queues stay with the device.
"""

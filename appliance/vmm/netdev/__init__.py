"""What a network device moves packets with: the cable (`backend`, `tap`), headers, filters, the two directions of a queue
pair in Python. `virtio.net` is the device; `vhost.net` is the same data path in the kernel.
"""

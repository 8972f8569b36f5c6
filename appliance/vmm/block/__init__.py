"""What stands behind a virtual disk: the seam (`backend`), a file or block device (`raw`), QEMU's storage daemon (`qsd`),
and the words of virtio-blk (`layout`, `request`). `virtio.blk` and `vhost_user.blk` are the devices; `disk` chooses one.
"""

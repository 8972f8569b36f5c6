"""Queues served by another process, told by messages on a socket (QEMU docs/interop/vhost-user.rst): the messages
(`messages`), our end of the conversation (`client`), the process (`process`), the dirty log (`log`), and what a virtio
device of this kind is (`device`). `blk` is the disk, `virtio.fs` the shared directory.
"""

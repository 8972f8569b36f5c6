"""The host's side of a guest's sockets (virtio 1.2 §5.10) on UNIX sockets, as Firecracker has it.

    host ──connect──> PATH, "CONNECT 52\\n" ──> guest's port 52;  "OK 1073741824\\n" comes back, then bytes
    guest ──connect──> host (CID 2), port 52 ──> whoever listens on PATH_52

`packet` is the wire, `connection` one stream and its credit, `host` all of them. `virtio.vsock` is the device.
"""

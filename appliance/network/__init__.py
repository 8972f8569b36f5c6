"""Bridges and guest ports of this host. `backend.NetworkBackend` is the door; see its docstring for the map."""

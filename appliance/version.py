"""The product's version and the version of Proxmox VE whose API it speaks. Nothing here imports anything."""

VERSION = "0.1.0"

DATA_FORMAT = 1
"""Of the data directory: see `state/data_format.py` for when it is raised."""

PVE_API_VERSION = "9.1.1"
"""What `GET /version` answers as `version`: clients parse it as semver and choose their calls by it."""

PVE_API_RELEASE = "9.1"

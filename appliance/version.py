"""The product's version and the version of Proxmox VE whose API it speaks. Nothing here imports anything."""

VERSION = "0.1.0"

PVE_API_VERSION = "9.1.1"
"""What `GET /version` answers as `version`: clients parse it as semver and choose their calls by it."""

PVE_API_RELEASE = "9.1"

"""The appliance: one asyncio process that turns a Debian host into a virtualization appliance.

The map of the packages and the direction of imports are in ARCHITECTURE.md; `tests/unit/test_layering.py` proves them.
"""

"""Bad input against a running appliance: each gets a clear error that names the object, and nothing is left behind.

conftest.py     the appliance of a module, which must leave the host as it was
client.py       requests as no well-behaved client makes them
archives.py, images.py       hostile templates and disk images
"""

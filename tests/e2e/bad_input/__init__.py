"""Bad input against a running appliance: each gets a clear error that names the object, and nothing is left behind.

conftest.py     the appliance of a module, which must leave the host as it was and write no traceback
client.py       requests as no well-behaved client makes them
archives.py     hostile container templates

test_parameters, test_http, test_sockets      what is sent
test_uploads, test_images, test_templates     what is stored
test_starting, test_missing, test_full_disk   what the host lacks
test_conflicts                                what is asked at the same time
"""

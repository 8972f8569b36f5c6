"""Values of the product's domain: no I/O, no asyncio; every layer may use them. One noun a module."""

"""`./dev deb`: the Debian package and the single file. A program of the developer's, not part of the product.

Both hold the same tree, /usr/lib/appliance: Debian 12's own CPython, the libraries it needs but glibc, the wheels of
requirements.lock and the repository at HEAD, compiled. `__main__.py` tells the steps; nothing is written outside of the
output and the work directory. Everything that could differ from one build to the next is fixed: times are the last
commit's, names are sorted, owners are root, modes are two, bytecode does not depend on its source's time.
"""

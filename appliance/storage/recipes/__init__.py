"""Templates built on this host from Debian's packages: recipes, and what turns them into images.

    recipe.py         what can be built: names, packages, and the files each kind of image gets (data only)
    apt_sources.py    the host's own package sources, reduced to Debian's archive (pure)
    bootstrap.py      mmdebstrap in namespaces of its own: the shared base, and a root directory on top of it
    disk_image.py     a root directory -> a GPT disk that boots under SeaBIOS and OVMF, without loop devices
    grub.py           the two boot loaders, and the block lists that a file's layout decides
    builder.py        the cache: one build at a time, whole images published by rename, remains removed

`python -m appliance.storage.recipes debian-12 vm DIRECTORY` builds one by hand.
"""

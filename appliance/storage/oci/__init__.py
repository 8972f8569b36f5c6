"""OCI images: registries, and the content-addressed store of a storage. `docs/adr/0014` tells why it is our own.

reference   names of images; digests                          pure
manifest    media types, indices, manifests, configurations   pure
challenge   WWW-Authenticate                                  pure
tags        which image a name means in one storage           pure
credentials how each registry is reached, and as whom         a file of mode 0600
registry    one registry: manifests, blobs, pushes            network
blobs       content by digest                                 files
layers      blobs unpacked, by chain                          files, a helper process
archive     the volume that stands for an image               files
transfer    an image from a registry, or to one               all of these
"""

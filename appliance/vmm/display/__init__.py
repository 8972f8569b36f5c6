"""The display of a native machine: a linear frame buffer for the guest, RFB for people, and a tablet for their pointer.

bochs_display   the PCI function: registers, frame buffer, option ROM         QEMU's bochs-display
edid            what the monitor says of itself                               VESA E-EDID 1.4
framebuffer     the host's memory behind BAR 0 and which pages were written
surface         what is visible: mode, copy of the picture, what has changed
pixels          pixel formats and their conversion
encoder         rectangles as bytes                                           RFC 6143 §7.7
rfb_messages    what a viewer says, with its bounds                           RFC 6143 §7.5
rfb             one viewer's connection                                       RFC 6143
keysyms         the keys of a US keyboard by their X names
inputs          all viewers' keys and pointers as one keyboard and one mouse
virtio_input    the tablet                                                    virtio 1.2 §5.8
display         all of it together: `make_display`
"""

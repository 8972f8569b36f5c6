"""What a lab host holds, as data. Nothing here runs; a change of anything here builds the image anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from appliance.storage.recipes.recipe import FileEntry

CODENAME: Final = "bookworm"
PYTHON: Final = (3, 11)
"""The release's interpreter."""
DISK_SIZE_MIB: Final = 8192
"""Of the root file system; the file is sparse."""

HOST_KERNEL: Final = "linux-image-cloud-amd64"
"""The host's kernel and the guests' usual one: it boots fastest."""
DRIVER_KERNEL: Final = "linux-image-amd64"
"""Another for guests: it has drivers the cloud kernel lacks (i6300esb, ahci, e1000)."""

HOST_INITRD_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net")
GUEST_MODULES: Final = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_console",
    "virtio_balloon", "virtio_mem", "virtio-rng", "virtio_input", "vmw_vsock_virtio_transport", "virtiofs",
    "pvpanic-mmio", "pvpanic-pci", "qemu_fw_cfg", "vfat", "nls_cp437", "nls_ascii", "isofs", "overlay", "af_packet",
    "ext4", "crc32c_generic", "button", "evdev",
)  # fmt: skip
DRIVER_KERNEL_MODULES: Final = (
    *GUEST_MODULES, "xfs", "i6300esb", "ahci", "sr_mod", "nvme", "e1000", "e1000e", "psmouse",
    "usbhid", "xhci_pci", "bochs",
)  # fmt: skip

SOURCE_DIR: Final = "/opt/appliance/src"
VENV_DIR: Final = "/opt/appliance/venv"
GUEST_DIR: Final = "/opt/guest"
GUEST_DISK: Final = f"{GUEST_DIR}/debian-12.qcow2"
GUEST_DISK_SERIAL: Final = "debian-12"
"""The disk image lies on a disk of its own, byte for byte: a read-only one, shared by all hosts."""

EARLY_FILES: Final[Mapping[str, FileEntry]] = {
    # the packages' own initial RAM disks are made and thrown away: as small as can be
    "etc/initramfs-tools/conf.d/lab.conf": FileEntry(text="MODULES=list\nCOMPRESS=gzip\n"),
}

_SETUP = """\
#!/bin/sh
# What differs from host to host comes on the kernel's command line.
set -e
for word in $(cat /proc/cmdline); do
  case "$word" in
    lab.key=*) key=${word#lab.key=} ;;
    lab.address=*) address=${word#lab.address=} ;;
  esac
done
mkdir -p -m 700 /root/.ssh
echo "ssh-ed25519 ${key} lab" >/root/.ssh/authorized_keys
echo "127.0.0.1 localhost
127.0.1.1 $(cat /proc/sys/kernel/hostname)
::1 localhost" >/etc/hosts
ip link set lo up
ip address replace 10.0.2.15/24 dev eth0
ip link set eth0 up
if [ -n "$address" ]; then
  ip address replace "$address" dev eth1
  ip link set eth1 up
fi
modprobe kvm_amd vgif=0  # QEMU 7.2: a nested guest hangs with virtual GIF
modprobe -a vhost_net vhost_vsock tun
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled  # as the package does
"""

_SETUP_UNIT = """\
[Unit]
Description=Network, keys and modules of a lab host
DefaultDependencies=no
After=systemd-remount-fs.service
Before=network.target ssh.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-setup
StandardOutput=journal+console

[Install]
WantedBy=sysinit.target
"""

_READY_UNIT = """\
[Unit]
Description=Tell the console that commands are obeyed
After=ssh.service lab-setup.service
Requires=ssh.service lab-setup.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo "lab: ready" >/dev/console'

[Install]
WantedBy=multi-user.target
"""

_APPLIANCE = f"""\
#!/bin/sh
PYTHONPATH={SOURCE_DIR} exec {VENV_DIR}/bin/python -m appliance "$@"
"""

FILES: Final[Mapping[str, FileEntry]] = {
    "etc/hostname": FileEntry(text="lab\n"),
    "etc/fstab": FileEntry(text="/dev/vda / ext4 defaults 0 0\n"),
    "etc/machine-id": FileEntry(text="0000000000000000000000000000001a\n"),  # each boot is given its own
    "etc/ssh/sshd_config.d/lab.conf": FileEntry(
        text="HostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM no\nPermitRootLogin prohibit-password\nMaxSessions 64\n"
    ),
    "etc/systemd/journald.conf.d/lab.conf": FileEntry(text="[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n"),
    "etc/modprobe.d/lab.conf": FileEntry(text="options kvm_amd vgif=0\n"),
    "etc/systemd/system/lab-setup.service": FileEntry(text=_SETUP_UNIT),
    GUEST_DISK.lstrip("/"): FileEntry(link=f"/dev/disk/by-id/virtio-{GUEST_DISK_SERIAL}"),
    "etc/systemd/system/lab-ready.service": FileEntry(text=_READY_UNIT),
    "usr/local/sbin/lab-setup": FileEntry(text=_SETUP, mode=0o755),
}
DEVELOPED_FILES: Final[Mapping[str, FileEntry]] = {
    "usr/local/bin/appliance": FileEntry(text=_APPLIANCE, mode=0o755),
}
"""Where the repository and an environment for it are: see variants.py."""

UNITS: Final = ("lab-setup.service", "lab-ready.service", "ssh.service")
MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "systemd-timesyncd.service",
)  # fmt: skip

HOST_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod "$module"; done
until [ -b /dev/vda ]; do /bin/busybox usleep 20000; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /sbin/init
"""

GUEST_INIT: Final = """\
#!/bin/busybox sh
# See tests/lab/guest_console.py for what is said on the console.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=dumb
console= load=yes root=
for word in $(cat /proc/cmdline); do
  case "$word" in
    guest.console=*) console=${word#guest.console=} ;;
    guest.load=*) load=${word#guest.load=} ;;
    guest.root=*) root=${word#guest.root=} ;;
    console=*) last=${word#console=} last=${last%%,*} ;;
  esac
done
[ "$load" = no ] || load-drivers
if [ "$root" ]; then
  modprobe -q -a crc32c_generic ext4
  tries=0
  until mount -t ext4 "$root" /mnt 2>/dev/null || [ $tries = 600 ]; do usleep 100000; tries=$((tries + 1)); done
  [ $tries = 600 ] || exec switch_root /mnt /sbin/init
  echo "guest: $root is not there, or no ext4" >/dev/console
fi
: "${console:=${last:-ttyS0}}"
tries=0
until [ -c "/dev/$console" ] || [ $tries = 600 ]; do usleep 100000; tries=$((tries + 1)); done
[ -c "/dev/$console" ] || echo "guest: /dev/$console did not appear" >/dev/kmsg
exec </dev/$console >/dev/$console 2>&1
stty raw -echo 2>/dev/null
printf '@guest ready %s\\n' "$(uname -r)"
while IFS=' ' read -r id command; do
  printf '@%s begin\\n' "$id"
  sh -c "$command" </dev/null
  printf '\\n@%s end %s\\n' "$id" "$?"
done
poweroff -f
"""

LOAD_DRIVERS: Final = """\
#!/bin/busybox sh
# Load the driver of every device there is: twice, for a bus brings devices of its own.
for pass in 1 2; do
  for alias in $(cat /sys/bus/*/devices/*/modalias | sort -u); do
    modprobe -q "$alias"
  done
done 2>/dev/null
exit 0
"""

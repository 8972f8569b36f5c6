"""Our own virtual machine monitor on /dev/kvm. The map is docs/adr/0013-the-native-machine.md."""

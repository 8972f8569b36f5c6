"""What a guest finds when it begins: firmware or a kernel in memory, tables, processors' identity, first registers.

    aml, aml_resources, dsdt    the AML encoder, and what is said in it          acpi           the tables around it
    smbios                      the DMI tables                                   e820           the memory map
    table_loader                one set of tables, two placements: by firmware (fw_cfg), or by us in memory (direct)
    linux, pvh, elf, low_memory kernels booted without firmware                  firmware       SeaBIOS, OVMF (pflash)
    firmware_config, bootorder  what fw_cfg tells the firmware                   cpuid          what a vCPU says it is
    regs                        a vCPU's registers at power-on, and at a kernel's entry

Pure functions of values and bytes, but for `regs` (a vCPU), `firmware` (files) and `pflash` (a device).
"""

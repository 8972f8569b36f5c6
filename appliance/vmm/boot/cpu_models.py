"""Processor models: which CPUID bits each one must have and may have. Pure.

"host" (also "max", and "") shows what KVM offers. The others are QEMU's kvm64 and qemu64 in substance and the levels of the
x86-64 psABI (v2, v2-AES, v3): the features that make up the level, required; what makes KVM guests fast or safe and costs
nothing to lack, allowed; nothing else, so that a guest sees the same on every host that has the level. Family, model and
brand are then generic; the vendor stays, as kernels choose their work-arounds by it.

The safe default for guests that shall move between hosts is `PORTABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from appliance.errors import Unsupported

PORTABLE: Final = "x86-64-v2-AES"


class Register(NamedTuple):
    """One register of one leaf."""

    function: int
    subleaf: int
    name: str


L1C, L1D = Register(1, 0, "ecx"), Register(1, 0, "edx")
L7B, L7C, L7D = Register(7, 0, "ebx"), Register(7, 0, "ecx"), Register(7, 0, "edx")
E1C, E1D = Register(0x8000_0001, 0, "ecx"), Register(0x8000_0001, 0, "edx")
E7D, E8B = Register(0x8000_0007, 0, "edx"), Register(0x8000_0008, 0, "ebx")
XCR0_LOW, XSAVE_FEATURES = Register(0xD, 0, "eax"), Register(0xD, 1, "eax")

# Names as in Linux's cpufeatures.h, register and bit as in SDM vol.2A and APM vol.3
BITS: Final[Mapping[str, tuple[Register, int]]] = {
    **{
        name: (L1D, bit)
        for bit, name in enumerate(["fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic"])
    },
    **{name: (L1D, bit) for bit, name in enumerate(["sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36"], 11)},
    "clflush": (L1D, 19),
    "mmx": (L1D, 23),
    "fxsr": (L1D, 24),
    "sse": (L1D, 25),
    "sse2": (L1D, 26),
    "sse3": (L1C, 0),
    "pclmulqdq": (L1C, 1),
    "ssse3": (L1C, 9),
    "fma": (L1C, 12),
    "cx16": (L1C, 13),
    "sse4_1": (L1C, 19),
    "sse4_2": (L1C, 20),
    "x2apic": (L1C, 21),
    "movbe": (L1C, 22),
    "popcnt": (L1C, 23),
    "aes": (L1C, 25),
    "xsave": (L1C, 26),
    "avx": (L1C, 28),
    "f16c": (L1C, 29),
    "rdrand": (L1C, 30),
    "pcid": (L1C, 17),
    "bmi1": (L7B, 3),
    "avx2": (L7B, 5),
    "smep": (L7B, 7),
    "bmi2": (L7B, 8),
    "erms": (L7B, 9),
    "invpcid": (L7B, 10),
    "rdseed": (L7B, 18),
    "smap": (L7B, 20),
    "umip": (L7C, 2),
    "md_clear": (L7D, 10),
    "spec_ctrl": (L7D, 26),
    "stibp": (L7D, 27),
    "l1d_flush": (L7D, 28),
    "arch_capabilities": (L7D, 29),
    "ssbd": (L7D, 31),
    "lahf_lm": (E1C, 0),
    "abm": (E1C, 5),
    "syscall": (E1D, 11),
    "nx": (E1D, 20),
    "pdpe1gb": (E1D, 26),
    "rdtscp": (E1D, 27),
    "lm": (E1D, 29),
    "amd_ibpb": (E8B, 12),
    "amd_ibrs": (E8B, 14),
    "amd_stibp": (E8B, 15),
    "amd_ssbd": (E8B, 24),
}

_X86_64 = [
    "fpu",
    "tsc",
    "msr",
    "pae",
    "cx8",
    "apic",
    "pge",
    "cmov",
    "pat",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "syscall",
    "nx",
    "lm",
]
_KVM64 = [*_X86_64, "sse3", "cx16"]
_V2 = [*_KVM64, *["lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"]]
_V3 = [*_V2, *["aes", "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"]]
_V3_ALLOWED: Final = ("pclmulqdq", "rdrand", "pcid", "smep", "erms", "invpcid", "smap", "umip", "pdpe1gb")
_ALLOWED: Final = (
    "vme de pse mce sep mtrr mca pse36 clflush x2apic rdtscp",
    "md_clear spec_ctrl stibp l1d_flush arch_capabilities ssbd amd_ibpb amd_ibrs amd_stibp amd_ssbd",
)


@dataclass(frozen=True, slots=True)
class _Level:
    required: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    xcr0: int = 0  # which state components XSAVE has


_HOST: Final = frozenset({"", "host", "max"})
_LEVELS: Final[Mapping[str, _Level]] = {
    "kvm64": _Level(tuple(_KVM64)),
    "qemu64": _Level(tuple(_KVM64)),
    "x86-64-v2": _Level(tuple(_V2)),
    "x86-64-v2-AES": _Level((*_V2, "aes"), ("pclmulqdq", "rdrand")),
    "x86-64-v3": _Level(tuple(_V3), _V3_ALLOWED, xcr0=7),
}
MODELS: Final = frozenset({*_HOST, *_LEVELS})

# Leaves shown by the levels. 2, 4: caches; 6: ARAT; 0xd: XSAVE; 0x80000005 and 6: AMD's caches; others have nothing to say
_BASIC_KEPT: Final = frozenset({0, 1, 2, 4, 6, 7, 0xD})
_EXTENDED_LAST: Final = 0x8000_0008
_GENERIC: Final = {0: (0xF61, "Common KVM processor"), 1: (0x60FB1, "Common KVM processor")}  # family 15: kvm64, qemu64
_AMD_EBX: Final = (0x6874_7541, 0x6F67_7948)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model makes of the offer: fixed values, or masks; the rest as it is. `level` None shows all."""

    level: bool
    values: Mapping[Register, int] = field(default_factory=dict)
    masks: Mapping[Register, int] = field(default_factory=dict)

    def keeps(self, function: int, index: int) -> bool:
        """Whether the leaf is shown at all. KVM's own (0x400000xx) always are."""
        if not self.level or function >> 8 == 0x40_0000:
            return True
        if function >= 0x8000_0000:
            return function <= _EXTENDED_LAST
        return function in _BASIC_KEPT and not (function == 7 and index) and not (function == 0xD and index > 2)

    def value(self, register: Register, offered: int) -> int:
        """Of the register, for the guest."""
        return self.values.get(register, offered) & self.masks.get(register, 0xFFFF_FFFF)


def masked(offered: Mapping[Register, int], model: str) -> Shown:
    """Raises `Unsupported` for a model not in `MODELS`, or one for which the host lacks features, named."""
    if model in _HOST:
        return Shown(level=False)
    if model not in _LEVELS:
        raise Unsupported(f"processor {model!r} is not one of {', '.join(sorted(MODELS - {''}))}")
    level = _LEVELS[model]
    lacking = [name for name in level.required if not offered.get(BITS[name][0], 0) >> BITS[name][1] & 1]
    if lacking or offered.get(XCR0_LOW, 0) & level.xcr0 != level.xcr0:
        raise Unsupported(f"processor {model!r}: this host lacks {', '.join(lacking) or 'AVX state'}")
    return Shown(level=True, values=_identity(offered, level), masks=_masks(level, amd=_is_amd(offered)))


def _is_amd(offered: Mapping[Register, int]) -> bool:
    return offered.get(Register(0, 0, "ebx"), 0) in _AMD_EBX


def _masks(level: _Level, *, amd: bool) -> dict[Register, int]:
    """By register: the bits of the level. AMD repeats leaf 1's edx in 0x80000001's (APM vol.3 E.4.2)."""
    masks = dict.fromkeys((L1C, L1D, L7B, L7C, L7D, E1C, E1D, E7D, E8B), 0)
    for name in (*level.required, *level.allowed, *" ".join(_ALLOWED).split()):
        register, bit = BITS[name]
        masks[register] |= 1 << bit
    if amd:
        masks[E1D] |= masks[L1D] & 0x0183_F3FF
    for name in ("eax", "ebx", "ecx", "edx"):
        masks[Register(0xD, 1, name)] = 0
        if not level.xcr0:
            masks[Register(0xD, 0, name)] = masks[Register(0xD, 2, name)] = 0
    if level.xcr0:
        masks[XCR0_LOW], masks[Register(0xD, 0, "edx")] = level.xcr0, 0
    masks[Register(7, 0, "eax")] = 0  # no sub-leaves
    masks[Register(6, 0, "eax")] = 1 << 2  # ARAT: the local APIC's timer never stops
    return masks


def _identity(offered: Mapping[Register, int], level: _Level) -> dict[Register, int]:
    """Highest leaves, signature and brand; the size of the XSAVE area with the level's components."""
    signature, brand = _GENERIC[_is_amd(offered)]
    values = {
        Register(0, 0, "eax"): min(offered.get(Register(0, 0, "eax"), 1), 0xD),
        Register(1, 0, "eax"): signature,
        Register(0x8000_0000, 0, "eax"): min(offered.get(Register(0x8000_0000, 0, "eax"), 0), _EXTENDED_LAST),
        Register(0x8000_0001, 0, "eax"): signature,
    }
    if level.xcr0:
        ends = Register(0xD, 2, "eax"), Register(0xD, 2, "ebx")  # AVX's component is the last one: size and offset
        values[Register(0xD, 0, "ecx")] = sum(offered.get(each, 0) for each in ends)
    text = brand.encode().ljust(48, b"\0")
    for number in range(12):
        register = Register(0x8000_0002 + number // 4, 0, ("eax", "ebx", "ecx", "edx")[number % 4])
        values[register] = int.from_bytes(text[4 * number : 4 * number + 4], "little")
    return values

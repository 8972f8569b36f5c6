"""The `-cpu` argument. Pure.

PVE's x86-64-vN models are the x86-64 psABI's levels written as feature sets over kvm64; QEMU has no such names.
"""

from __future__ import annotations

import re

from appliance.model.guest import VmSpec

MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FLAG = re.compile(r"[+-][a-z0-9][a-z0-9._-]{0,63}")

_V2 = ("+cx16", "+lahf-lm", "+popcnt", "+pni", "+sse4.1", "+sse4.2", "+ssse3")
_V3 = (*_V2, "+aes", "+abm", "+avx", "+avx2", "+bmi1", "+bmi2", "+f16c", "+fma", "+movbe", "+xsave")
_V4 = (*_V3, "+avx512bw", "+avx512cd", "+avx512dq", "+avx512f", "+avx512vl")
_LEVELS = {
    "x86-64-v2": _V2,
    "x86-64-v2-AES": (*_V2, "+aes"),
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
}
_HYPERV = (
    *("hv_ipi=on", "hv_relaxed=on", "hv_reset=on", "hv_runtime=on", "hv_spinlocks=0x1fff", "hv_stimer=on"),
    *("hv_synic=on", "hv_time=on", "hv_vapic=on", "hv_vpindex=on"),
)


def cpu_argument(spec: VmSpec, accelerator: str) -> str:
    """The value of `-cpu`: the model wanted, or the most the accelerator has."""
    model, flags = spec.cpu_model, list(spec.cpu_flags)
    if model in _LEVELS:
        model, flags = "kvm64", [*_LEVELS[model], *flags]
    if not model or (model == "host" and accelerator == "tcg"):
        model = "host" if accelerator == "kvm" else "max"
    features = [f"{flag[1:]}={'on' if flag[0] == '+' else 'off'}" for flag in flags]
    if spec.arch == "aarch64" and model == "max" and accelerator == "tcg":
        features.append("pauth-impdef=on")  # the architected algorithm makes emulated pointer checks many times slower
    if spec.os_type.startswith("w") and accelerator == "kvm" and spec.arch == "x86_64":
        features += _HYPERV  # PVE's ostype names for Windows all begin with w
    return ",".join([model, *features])

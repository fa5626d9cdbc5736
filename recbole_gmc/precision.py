"""fp32 or bf16: bf16 where the hardware multiplies it natively, because emulated bf16 is slower than fp32."""

from __future__ import annotations

import torch


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware: Ampere or later on cuda, AVX512-BF16 or AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def use_bf16(precision: str, device: torch.device, enable_amp: bool = False) -> bool:
    """Reads ``precision`` or ``tokenizer_precision`` (auto, fp32, bf16); ``enable_amp`` asks for bf16."""
    if precision == "auto":
        return enable_amp or native_bf16(device)
    return precision == "bf16"


def resolved(precision: str, device: torch.device) -> str:
    """``fp32`` or ``bf16``, what ``precision`` means on this device."""
    return "bf16" if use_bf16(precision, device) else "fp32"

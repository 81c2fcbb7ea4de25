"""Device, precision, and the frame in which a model is only used, not trained."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from .warn import warn_caller

_lock = threading.Lock()
_in_use: dict[nn.Module, tuple[int, bool]] = {}  # how many `inference` hold a module, and its mode before the first
_warned: set[str] = set()  # kinds of device that `autocast` has warned of


def device() -> torch.device:
    """The accelerator, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware (CPU: AVX512-BF16 or AMX); elsewhere it is slower."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which matrix products run in `precision`; float32 where bfloat16 doesn't pay, with a single warning.

    Raises ValueError for anything but "float32" and "bfloat16".
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}, expected 'float32' or 'bfloat16'")
    if precision == "float32" or not bfloat16_is_fast(device):
        if precision == "bfloat16" and device.type not in _warned:
            _warned.add(device.type)
            warn_caller(f"this {device.type} has no fast bfloat16: computing in float32")
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def inference(module: nn.Module, precision: str = "float32") -> Iterator[None]:
    """Eval mode without gradients; afterwards each submodule is in the mode that it was in before.

    Several threads may use a module at once, or one that contains it: the first to come switches a submodule to eval
    mode, the last to go switches it back.
    """
    modules = list(module.modules())
    with _lock:
        for part in modules:
            users, before = _in_use.get(part, (0, part.training))
            _in_use[part] = users + 1, before
            if part.training:
                part.training = False
    try:
        with torch.inference_mode(), autocast(next(module.parameters()).device, precision):
            yield
    finally:
        with _lock:
            for part in modules:
                users, before = _in_use.pop(part)
                if users > 1:
                    _in_use[part] = users - 1, before
                elif before:
                    part.training = True

"""Which implementation runs: the one rule that attention.py, logprob.py and decode.py share.

`auto` takes Triton for CUDA (or ROCm) tensors of a supported device, dtype and shape and torch for everything else: the
choice never raises (a kernel that then fails to compile does); `triton` raises with the reason it cannot run; `torch`
always works. Nothing here, or anywhere in kernels/, asks
the driver at import. Under TRITON_INTERPRET=1 Triton kernels run on CPU tensors, slowly, for the tests; `auto` stays
with torch there.
"""

import contextlib
import os
from functools import cache

import torch

try:  # no Triton wheel for macOS and Windows: every kernel has a torch path
    import triton
except ImportError:
    triton = None

IMPLS = ("auto", "triton", "torch")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreted() -> bool:
    """True when Triton runs its kernels in Python on CPU tensors. Read at import by Triton itself, so set it before."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not_triton(tensor: torch.Tensor) -> str | None:
    """The reason Triton cannot run on this tensor's device and dtype, or None when it can."""
    if triton is None:
        return "Triton is not installed (its wheels exist for Linux only)"
    if tensor.device.type != "cuda" and not (interpreted() and tensor.device.type == "cpu"):
        return f"got a {tensor.device.type} tensor, Triton needs a GPU (or TRITON_INTERPRET=1, slow, for tests)"
    if (
        tensor.device.type == "cuda"
        and not torch.version.hip
        and torch.cuda.get_device_capability(tensor.device) < (8, 0)
    ):
        return "the GPU is older than sm_80, for which no tiles were chosen"
    if tensor.dtype not in KERNEL_DTYPES:
        return f"got {tensor.dtype}, the kernels take float32, float16 and bfloat16"
    if interpreted() and tensor.dtype == torch.bfloat16:
        return "got bfloat16, which the Triton interpreter computes wrongly without a word; use float32 or float16"
    return None


def choose_impl(impl: str, tensor: torch.Tensor, unsupported: str | None = None) -> str:
    """Either "triton" or "torch" for this call. `unsupported`: the kernel's own reason against this shape, if any."""
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r}: needs one of {', '.join(IMPLS)}")
    if impl == "torch":
        return "torch"
    reason = why_not_triton(tensor) or unsupported
    if impl == "triton" and reason:
        raise RuntimeError(f"kernels triton: {reason}; use auto or torch")
    if reason or (interpreted() and impl == "auto"):
        return "torch"
    return "triton"


def describe(impl: str, device: torch.device | str) -> str:
    """One line for a stage script's header: what `impl` means on `device`, and why. Raises as "triton" does."""
    probe = torch.empty(0, device=device)
    chosen = choose_impl(impl, probe)
    if impl == chosen:
        return f"{chosen} (asked for)"
    if probe.device.type == "cpu":
        return f"{chosen} ({'on the CPU' if torch.cuda.is_available() else 'no GPU'})"
    return f"{chosen} ({why_not_triton(probe) or 'a GPU that Triton compiles for'})"


def to_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What autocast does to the inputs of a matrix product: its dtype when it is on (float64 is left alone)."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


@cache
def _cpu_has(dtype: torch.dtype) -> bool:
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    probe = getattr(torch.ops.mkldnn, name, None)
    return bool(probe and probe())


def matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the torch paths multiply: `tensor.dtype`, but float32 for 16-bit tensors on a CPU without
    16-bit arithmetic, where a bf16 product runs at 1 GFLOP/s against 60 in float32 (measured, AVX2)."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16) and not _cpu_has(tensor.dtype):
        return torch.float32
    return tensor.dtype


def on_device(tensor: torch.Tensor):
    """A context in which Triton launches on this tensor's GPU: by itself it takes the current one, whatever that is."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()


def check_devices(what: str, **tensors) -> None:
    """ValueError unless all of the tensors (None: not given) lie on one device."""
    found = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(found.values())) > 1:
        raise ValueError(f"{what}: got {', '.join(f'{n} on {d}' for n, d in found.items())}; needs one device")


@cache
def target_name(index: int) -> str:
    """Key of the tile tables for CUDA device `index`; any of AMD's takes gfx942's row."""
    return "gfx942" if torch.version.hip else target_of_capability(torch.cuda.get_device_capability(index))


def target_of_capability(capability: tuple[int, int]) -> str:
    """By what matrix instructions a GPU has: sm_90 wgmma, sm_100 and sm_110 tensor memory, all others (sm_8x, and
    sm_120, a consumer's Blackwell without tensor memory) the plain ones of sm_80."""
    return {9: "sm90", 10: "sm100", 11: "sm100"}.get(capability[0], "sm80")


def target_of(tensor: torch.Tensor) -> str:
    """Tile-table key for this tensor's device; the interpreter takes its own row of small tiles."""
    return "interpreter" if tensor.device.type == "cpu" else target_name(tensor.device.index or 0)

"""What the parts of bench/gpu.py share: the device, sizes that shrink in a rehearsal, a clock, a memory meter."""

import statistics
import time
from dataclasses import dataclass, field

import torch


@dataclass
class Machine:
    """A GPU, or in a rehearsal the CPU with Triton's interpreter, which computes bfloat16 wrongly."""

    rehearse: bool
    device: str = field(init=False)
    low: torch.dtype = field(init=False)  # the 16-bit dtype of timings

    def __post_init__(self):
        self.device = "cpu" if self.rehearse else "cuda"
        self.low = torch.float16 if self.rehearse else torch.bfloat16

    def pick(self, real, tiny):
        return tiny if self.rehearse else real

    def randn(self, *shape, dtype=None, grad: bool = False) -> torch.Tensor:
        return torch.randn(*shape, device=self.device).to(dtype or self.low).requires_grad_(grad)

    def synchronize(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize()

    def milliseconds(self, work) -> float:
        """Median of as many calls as fit into a tenth of a second, at least 5, after warming up. The gaps between
        launches count: it is the time that a training step would see."""
        if self.rehearse:
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)
        for _ in range(3):
            work()
        marks = [torch.cuda.Event(enable_timing=True)]
        marks[0].record()
        began = time.perf_counter()
        while len(marks) < 6 or (time.perf_counter() - began < 0.1 and len(marks) < 200):
            work()
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False))

    def product_tflops(self, n: int) -> float:
        """TFLOP/s of an n x n x n product: the measured ceiling."""
        a, b = self.randn(n, n), self.randn(n, n)
        return 2e-9 * n**3 / self.milliseconds(lambda: a @ b)

    def peak_mb(self, work) -> float | None:
        """Memory that one call needs at most beyond what is held before it."""
        if self.rehearse:
            work()
            return None
        work()  # workspaces of the library stay
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 2**20


def with_backward(work, inputs, gradient):
    """A call of work() and its backward, for a fixed random upstream gradient."""
    return lambda: torch.autograd.grad(work(), inputs, gradient)


def document_starts(B: int, T: int, length: int, device) -> torch.Tensor:
    """first (B, T) of documents of `length` tokens."""
    t = torch.arange(T, dtype=torch.int32, device=device)
    return (t // length * length).expand(B, T).contiguous()

"""Pre-training's `--compile`: no graph break in a block, one graph for all, the same losses.   Commands: cases.py"""

import pytest
import torch
from cases import DEVICE, IMPL
from torch._dynamo.testing import CompileCounterWithBackend

from kernels.attention import attention
from model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=90, block_size=32, n_layer=2, n_head=2, n_embd=64, n_hidden=96, qk_norm=True)


@pytest.fixture
def model():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = GPT(CONFIG).to(DEVICE)
    model.impl = IMPL
    yield model
    torch._dynamo.reset()


def test_a_block_has_no_graph_break(model):
    first = torch.zeros(2, 20, dtype=torch.int32, device=DEVICE)
    x = torch.randn(2, 20, 64, device=DEVICE, requires_grad=True)
    cos, sin = model.rope_cos[None, :20, None], model.rope_sin[None, :20, None]
    found = torch._dynamo.explain(model.blocks[0])(
        x, cos, sin, lambda q, k, v: attention(q, k, v, first=first, impl=IMPL)
    )
    assert found.graph_break_count == 0 and found.graph_count == 1, found.break_reasons


def test_compiled_blocks_give_the_same_losses_and_gradients(model):
    """Whole rows and documents, two layers: one graph each for both layers (the backend only traces)."""
    idx = torch.randint(90, (2, 25), device=DEVICE)
    first = (torch.arange(24, dtype=torch.int32, device=DEVICE) // 9 * 9).expand(2, 24).contiguous()
    masks = (None, first)

    def run(mask):
        model.zero_grad(set_to_none=True)
        loss = model(idx[:, :-1], idx[:, 1:], first=mask)
        loss.backward()
        return loss.detach(), *(p.grad for p in model.parameters())

    plain, names = [run(mask) for mask in masks], list(model.state_dict())
    graphs = CompileCounterWithBackend("aot_eager")
    model.compile_blocks(backend=graphs)
    for mask, want in zip(masks, plain, strict=True):
        for a, b in zip(run(mask), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    assert graphs.frame_count == 2 and list(model.state_dict()) == names

"""Products by oneDNN and by torch against float64.   pytest -q tests/kernels/test_products.py"""

import pytest
import torch
import torch.nn.functional as F

from kernels import products
from kernels.products import linear, matmul
from model import build_model

ON_X86 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def value_and_gradients(work, x, weight, g):
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = work(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def onednn(request, monkeypatch):
    """Either library, whatever the CPU would choose."""
    if request.param and not ON_X86:
        pytest.skip("oneDNN is asked for on x86 alone")
    monkeypatch.setattr(products, "ONEDNN", request.param)


@pytest.mark.parametrize("N, K", [(24, 7), (7, 24)])
def test_linear_and_its_gradient(onednn, N, K):
    """Wide and tall weights; rows that are a slice."""
    torch.manual_seed(0)
    x, weight, g = torch.randn(3, 5, K + 2)[..., 2:], torch.randn(N, K), torch.randn(3, 5, N)
    found = value_and_gradients(linear, x, weight, g)
    for a, b in zip(found, value_and_gradients(F.linear, x.double(), weight.double(), g.double()), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_asked_for(onednn):
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    (dx,) = torch.autograd.grad(linear(x.requires_grad_(), weight).sum(), x)
    torch.testing.assert_close(dx, weight.sum(0).expand(4, 8))
    (dw,) = torch.autograd.grad(linear(x.detach(), weight.requires_grad_()).sum(), weight)
    torch.testing.assert_close(dw, x.detach().sum(0).expand(6, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast_are_torchs(dtype):
    x, weight = torch.randn(4, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


@pytest.mark.skipif(not ON_X86, reason="seen on x86 alone")
@pytest.mark.parametrize("K, N", [(128, 384), (352, 128), (100, 60)])
def test_a_row_does_not_depend_on_those_beside_it(K, N):
    """Samples are the same whichever prompts are sampled together: bit for bit, from 16 rows on."""
    torch.manual_seed(K)
    x, weight = torch.randn(700, K), torch.randn(N, K)
    whole = matmul(x, weight.T)
    for rows in (16, 24, 40, 64, 72, 136, 256, 520, 696):
        some = torch.randperm(700)[:rows]
        assert torch.equal(matmul(x[some], weight.T), whole[some]), rows


def test_no_rows(onednn):
    assert linear(torch.randn(0, 8), torch.randn(6, 8)).shape == (0, 6)
    out = torch.empty(4, 6)
    a, b = torch.randn(4, 8), torch.randn(8, 6)
    assert matmul(a, b, out) is out and torch.allclose(out, a @ b, atol=1e-5)


@pytest.mark.skipif(not ON_X86, reason="oneDNN is asked for on x86 alone")
def test_a_step_has_the_same_loss_and_gradient_by_either_library(monkeypatch):
    torch.manual_seed(0)
    model, idx = build_model("world", block_size=64), torch.randint(1024, (4, 65))
    found = []
    for either in (False, True):
        monkeypatch.setattr(products, "ONEDNN", either)
        model.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, grad), (other, other_grad) = found
    assert loss == pytest.approx(other, rel=1e-6)
    assert (grad - other_grad).norm() < 1e-5 * grad.norm()

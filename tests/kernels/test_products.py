"""Products by oneDNN against float64, and by torch elsewhere.   pytest -q tests/kernels/test_products.py"""

import pytest
import torch
import torch.nn.functional as F

from kernels import products
from kernels.products import linear, matmul


def value_and_gradients(work, x, weight, g):
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = work(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("N, K", [(24, 7), (7, 24)])
def test_linear_and_its_gradient(monkeypatch, elsewhere, N, K):
    """Wide and tall weights; rows that are a slice."""
    torch.manual_seed(0)
    monkeypatch.setattr(products, "ON_X86", products.ON_X86 and not elsewhere)
    x, weight, g = torch.randn(3, 5, K + 2)[..., 2:], torch.randn(N, K), torch.randn(3, 5, N)
    found = value_and_gradients(linear, x, weight, g)
    for a, b in zip(found, value_and_gradients(F.linear, x.double(), weight.double(), g.double()), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_asked_for():
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


@pytest.mark.skipif(not products.ON_X86, reason="of oneDNN alone")
@pytest.mark.parametrize("K, N", [(128, 384), (352, 128), (100, 60)])
def test_a_row_does_not_depend_on_those_beside_it(K, N):
    """Samples are the same whichever prompts are sampled together: bit for bit, from 16 rows on."""
    torch.manual_seed(K)
    x, weight = torch.randn(700, K), torch.randn(N, K)
    whole = matmul(x, weight.T)
    for rows in (16, 24, 40, 64, 72, 136, 256, 520, 696):
        some = torch.randperm(700)[:rows]
        assert torch.equal(matmul(x[some], weight.T), whole[some]), rows


def test_no_rows():
    assert linear(torch.randn(0, 8), torch.randn(6, 8)).shape == (0, 6)
    out = torch.empty(4, 6)
    a, b = torch.randn(4, 8), torch.randn(8, 6)
    assert matmul(a, b, out) is out and torch.allclose(out, a @ b, atol=1e-5)

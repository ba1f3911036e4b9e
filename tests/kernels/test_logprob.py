"""Log-prob, log-sum-exp and entropy against their float64 definition, and gradients.   Commands: cases.py"""

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, IMPL, TOLERANCE, assert_close, random, torch_only
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch
from kernels import logprob as logprob_file
from kernels import logprob_torch as logprob_torch_file
from kernels.logprob import linear_logprob
from kernels.logprob_torch import linear_logprob_reference

# For tests that cut the torch path into chunks and nothing else: the kernels would do the same twice.
TORCH_CHUNKS = [pytest.param(True, id="one-chunk"), pytest.param(False, id="chunks", marks=torch_only)]


def logprob_case(N, V, D, dtype, scale=1.0):
    hidden, weight = random(N, D, dtype=dtype), random(V, D, dtype=dtype, scale=scale * D**-0.5)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (N,), device=DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [True, False], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("N, V, D, temperature", [(1, 97, 16, 1.0), (17, 131, 24, 0.7), (70, 301, 64, 1.3)])
def test_logprob_matches_float64(poison, monkeypatch, dtype, kept, N, V, D, temperature):
    """All three outputs and both gradients, with another upstream gradient for every row and output."""
    torch.manual_seed(N)
    if not kept:
        monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
        monkeypatch.setattr(logprob_torch_file, "CPU_TILE", (16, 64))
        monkeypatch.setattr(logprob_file, "SPLITS", 1)  # one program walks all tiles, so its running sums are rescaled
        monkeypatch.setattr(logprob_file, "GPU_CHUNK", 0)
    hidden, weight, targets = logprob_case(N, V, D, dtype)
    upstream = [torch.randn(N, device=DEVICE) for _ in range(3)]
    outputs = linear_logprob(hidden, weight, targets, temperature=temperature, entropy=True, impl=IMPL)
    sum((o * g).sum() for o, g in zip(outputs, upstream, strict=True)).backward()
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    want = linear_logprob_reference(h, w, targets, temperature)
    sum((o * g.double()).sum() for o, g in zip(want, upstream, strict=True)).backward()
    for name, o, true in zip(("logp", "lse", "entropy"), outputs, want, strict=True):
        assert o.dtype == torch.float32
        assert_close(o.detach(), true.detach(), dtype, name)
    assert_close(hidden.grad, h.grad, dtype, "gradient of hidden")
    assert_close(weight.grad, w.grad, dtype, "gradient of weight")


@pytest.mark.parametrize("kept", TORCH_CHUNKS)
def test_logprob_against_linear_cross_entropy(monkeypatch, kept):
    """A second oracle, torch's own: cross-entropy is minus our mean, per row and in its gradients."""
    if not kept:
        monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
    hidden, weight, targets = logprob_case(33, 211, 32, torch.float32)
    rows = torch.rand(33, device=DEVICE)
    want = F.linear_cross_entropy(hidden, weight, targets, reduction="none")
    true = torch.autograd.grad((want * rows).sum(), (hidden, weight))
    logp, _, _ = linear_logprob(hidden, weight, targets, impl=IMPL)
    got = torch.autograd.grad(-(logp * rows).sum(), (hidden, weight))
    assert torch.allclose(-logp, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, true, strict=True):
        assert_close(a, b.double(), torch.float32, "gradient")


def test_logprob_of_a_uniform_head():
    """By hand: equal logits over 8 words give log 1/8, log-sum-exp and entropy log 8, and z-loss gradient 2 lse p."""
    hidden, weight = torch.ones(3, 16, device=DEVICE), torch.zeros(8, 16, device=DEVICE, requires_grad=True)
    logp, lse, entropy = linear_logprob(hidden, weight, torch.tensor([0, 3, 7], device=DEVICE), entropy=True, impl=IMPL)
    log8 = torch.full((3,), 8.0, device=DEVICE).log()
    assert torch.allclose(logp, -log8) and torch.allclose(lse, log8) and torch.allclose(entropy, log8)
    (lse**2).sum().backward()
    assert torch.allclose(weight.grad, torch.full_like(weight, 3 * 2 * float(log8[0]) / 8))


def test_logprob_with_logits_of_1e4(poison):
    hidden, weight, targets = logprob_case(9, 150, 32, torch.float32, scale=5000.0)
    outputs = linear_logprob(hidden, weight, targets, entropy=True, impl=IMPL)
    sum(o.sum() for o in outputs).backward()
    want = linear_logprob_reference(hidden.detach().double(), weight.detach().double(), targets)
    assert want[1].abs().max() > 1e4
    assert_close(outputs[0].detach(), want[0], torch.float32, "logp")
    assert_close(outputs[1].detach(), want[1], torch.float32, "lse")
    assert outputs[2].min() >= -1e-6 and hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_logprob_gradient_by_finite_differences(monkeypatch):
    monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
    hidden, weight, targets = logprob_case(5, 40, 16, torch.float32)
    settings = dict(temperature=0.8, entropy=True, impl=IMPL)
    mix, step = torch.randn(3, 5, device=DEVICE), (random(5, 16), random(40, 16))

    def loss(h, w):
        return (torch.stack(linear_logprob(h, w, targets, **settings)) * mix).sum()

    grads = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    with torch.no_grad():
        up, down = (loss(hidden + s * step[0], weight + s * step[1]) for s in (1e-2, -1e-2))
    assert torch.isclose((up - down) / 2e-2, sum((g * d).sum() for g, d in zip(grads, step, strict=True)), rtol=1e-2)


def test_logprob_holds_no_logits(monkeypatch):
    """No operation, forward or backward, returns half as many elements as the (N, V) logits have; the backward's three
    chunks of the vocabulary join to the true gradients."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = out if isinstance(out, tuple | list) else (out,)
            self.size = max([self.size, *(x.untyped_storage().nbytes() // 4 for x in tensors if torch.is_tensor(x))])
            return out

    monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
    monkeypatch.setattr(logprob_file, "GPU_CHUNK", 0)
    monkeypatch.setattr(logprob_torch_file, "CPU_TILE", (16, 256))
    N, V = 32, 2100  # a chunk has 1024 words or more
    hidden, weight, targets = (x.detach() for x in logprob_case(N, V, 8, torch.float32))
    hidden, weight = hidden.contiguous().requires_grad_(), weight.contiguous().requires_grad_()
    with Largest() as largest:
        sum(o.sum() for o in linear_logprob(hidden, weight, targets, entropy=True, impl=IMPL)).backward()
    assert V * 8 <= largest.size < N * V / 2  # the gradient of weight is the least there can be
    true = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    sum(o.sum() for o in linear_logprob_reference(*true, targets)).backward()
    for got, want in zip((hidden, weight), true, strict=True):
        assert_close(got.grad, want.grad, torch.float32, "gradient")


def test_logprob_marks_targets_outside_the_vocabulary():
    """What a GPU does instead of raising: NaN for that row, nothing else touched. (Called below the CPU's check.)"""
    hidden, weight, targets = logprob_case(4, 20, 16, torch.float32)
    function = logprob_file._TritonLogprob if IMPL == "triton" else logprob_torch_file.TorchLogprob
    good = function.apply(hidden, weight, targets, 1.0, False)[0]
    for bad in (-1, 20):
        wrong = targets.clone()
        wrong[2] = bad
        logp, lse, _ = function.apply(hidden, weight, wrong, 1.0, False)
        assert logp.isnan().tolist() == [False, False, True, False] and lse.isfinite().all()
        assert torch.equal(logp[[0, 1, 3]], good[[0, 1, 3]])
        (d_hidden,) = torch.autograd.grad(logp.sum(), hidden)
        assert d_hidden.isnan().any(1).tolist() == [False, False, True, False]


def test_logprob_of_strided_targets(on_device):
    h, w = torch.randn(40, 16), torch.randn(300, 16)
    y = torch.randint(300, (80,))[::2]
    torch.testing.assert_close(
        linear_logprob(h, w, y, impl=IMPL)[0], linear_logprob_reference(h, w, y)[0], atol=1e-5, rtol=1e-5
    )


def test_logprob_of_no_rows(on_device):
    h, w = torch.zeros(0, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    out = linear_logprob(h, w, torch.zeros(0, dtype=torch.long), entropy=True, impl=IMPL)
    sum(x.sum() for x in out).backward()
    assert all(x.shape == (0,) for x in out) and h.grad.shape == (0, 16) and w.grad.eq(0).all()


def test_a_second_derivative_through_the_upstream_raises(on_device):
    h, w, a = torch.randn(4, 32, requires_grad=True), torch.randn(9, 32), torch.ones(4, requires_grad=True)
    logp = (a * linear_logprob(h, w, torch.tensor([1, 2, 3, 4]), impl=IMPL)[0]).sum()
    (g,) = torch.autograd.grad(logp, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.square().sum().backward()


@pytest.mark.parametrize("kept", TORCH_CHUNKS)
def test_entropy_only_where_asked_for(monkeypatch, kept):
    """Without it the other results keep their bits, and so do the gradients."""
    if not kept:
        monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
    hidden, weight, targets = logprob_case(33, 211, 32, torch.float32)
    rows, results = torch.rand(33, device=DEVICE), []
    for entropy in (True, False):
        logp, lse, found = linear_logprob(hidden, weight, targets, entropy=entropy, impl=IMPL)
        assert (found is not None) == entropy
        results.append((logp, lse, *torch.autograd.grad((logp * rows + lse).sum(), (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kept", TORCH_CHUNKS)
@pytest.mark.parametrize("entropy", [True, False])
def test_only_gradients_that_are_needed(monkeypatch, kept, entropy):
    """A frozen head or a frozen trunk: the other gradient is the same, and no product is made for this one."""
    if not kept:
        monkeypatch.setattr(logprob_torch_file, "CHUNK", 0)
    hidden, weight, targets = (x.detach() for x in logprob_case(17, 131, 24, torch.float32))

    class Shapes(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                self.seen.add(tuple(out.shape))
            return out

    results = {}
    for frozen in ("none", "hidden", "weight"):
        h, w = hidden.clone().requires_grad_(frozen != "hidden"), weight.clone().requires_grad_(frozen != "weight")
        outputs = linear_logprob(h, w, targets, entropy=entropy, impl=IMPL)
        with Shapes() as products:
            sum(x.sum() for x in outputs if x is not None).backward()
        results[frozen] = h.grad, w.grad, products.seen
    assert torch.equal(results["weight"][0], results["none"][0]) and results["weight"][1] is None
    assert torch.equal(results["hidden"][1], results["none"][1]) and results["hidden"][0] is None
    assert (131, 24) not in results["weight"][2] and (17, 24) not in results["hidden"][2]


def test_more_row_blocks_than_a_group(monkeypatch):
    """Every block of rows meets every tile of the vocabulary once, also in a last group that is not full."""
    monkeypatch.setattr(logprob_file, "GROUP", 2)
    N = 70 if dispatch.interpreted() else 300  # three blocks of rows, and five in the interpreter's forward
    hidden, weight, targets = logprob_case(N, 131, 16, torch.float32)
    logp = linear_logprob(hidden, weight, targets, impl=IMPL)[0]
    want = linear_logprob_reference(hidden.detach().double(), weight.detach().double(), targets)[0]
    assert_close(logp.detach(), want, torch.float32, "logp")
    got = torch.autograd.grad(logp.sum(), (hidden, weight))
    true = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    linear_logprob_reference(*true, targets)[0].sum().backward()
    for a, b in zip(got, true, strict=True):
        assert_close(a, b.grad, torch.float32, "gradient")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logprob_of_nan_is_nan(bad):
    """One bad hidden state spoils its own row and no other."""
    hidden, weight, targets = (x.detach() for x in logprob_case(9, 97, 16, torch.float32))
    hidden[4, 3] = bad
    hidden.requires_grad_()
    outputs = linear_logprob(hidden, weight, targets, entropy=True, impl=IMPL)
    outputs[0].sum().backward()
    for x in (*outputs, hidden.grad.sum(1)):
        assert x.isnan().nonzero().flatten().tolist() == [4]


def test_three_tf32_products_are_as_good_as_one_in_float32():
    """What float32 log-prob multiplies with on NVIDIA (`tf32x3` in kernels/tiles.py), by hand: each factor is a tf32
    number (10 bits of fraction) and a tf32 rest, and the product of the two rests is left out. tf32 alone is 500 times
    worse."""

    def tf32(x):  # to nearest, by its bits
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 512), torch.randn(512, 64)
    true = hidden.double() @ weight.double()
    parts = [(tf32(x), tf32(x - tf32(x))) for x in (hidden, weight)]
    (h, h_rest), (w, w_rest) = parts
    products = {"tf32": h @ w, "tf32x3": h_rest @ w + h @ w_rest + h @ w, "float32": hidden @ weight}
    error = {name: float((x - true).abs().max() / true.abs().max()) for name, x in products.items()}
    assert error["tf32x3"] < 2 * error["float32"] < 1e-6 and error["tf32"] > 100 * error["tf32x3"], error


def test_logits_of_the_sampler_are_the_scorers():
    """Under autocast as by hand: both factors rounded once. On a GPU the sums stay in float32, as the scorer's do."""
    hidden, weight, _ = (x.detach() for x in logprob_case(40, 97, 32, torch.float32))
    assert torch.equal(logprob_file.float32_logits(hidden, weight), F.linear(hidden, weight))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = logprob_file.float32_logits(hidden, weight)
    low = [x.bfloat16() for x in (hidden, weight)]
    assert logits.dtype == torch.float32
    want = F.linear(*low).float() if DEVICE == "cpu" else F.linear(*(x.float() for x in low))
    assert torch.allclose(logits, want, rtol=0 if DEVICE == "cpu" else 1e-5)

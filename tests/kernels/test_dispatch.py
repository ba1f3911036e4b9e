"""Autocast, the choice of implementation, complaints about bad input.   Commands: cases.py"""

from types import SimpleNamespace

import pytest
import torch
from cases import DEVICE, IMPL

from kernels import dispatch
from kernels.attention import attention
from kernels.attention_torch import attention_reference
from kernels.decode import decode_attention, prefix_tail_attention_reference
from kernels.logprob import linear_logprob
from kernels.logprob_torch import linear_logprob_reference


def test_autocast_rounds_inputs_and_keeps_gradients_in_float32():
    q, k, v = (torch.randn(2, 2, 17, 32, device=DEVICE, requires_grad=True) for _ in range(3))
    hidden = torch.randn(17, 32, device=DEVICE, requires_grad=True)
    weight = (torch.randn(97, 32, device=DEVICE) * 32**-0.5).requires_grad_()
    targets = torch.randint(97, (17,), device=DEVICE)
    kind = torch.float16 if dispatch.interpreted() else torch.bfloat16
    with torch.autocast(DEVICE, dtype=kind):
        out = attention(q, k, v, impl=IMPL)
        logp, lse, entropy = linear_logprob(hidden, weight, targets, entropy=True, impl=IMPL)
    (out.float().sum() + logp.sum()).backward()
    assert out.dtype == kind and logp.dtype == lse.dtype == entropy.dtype == torch.float32
    assert torch.allclose(out.float(), attention_reference(q, k, v), atol=3e-2)
    assert torch.allclose(logp, linear_logprob_reference(hidden, weight, targets)[0], atol=5e-2)
    for x in (q, k, v, hidden, weight):
        assert x.grad.dtype == torch.float32 and x.grad.abs().max() > 0


def test_bad_shapes_and_values_say_so():
    q, hidden, weight, y = torch.ones(1, 2, 4, 32), torch.ones(3, 8), torch.ones(5, 8), torch.tensor([0, 1, 2])
    kv = torch.ones(1, 1, 4, 32)

    def int32(rows):
        return torch.tensor(rows, dtype=torch.int32)

    def decode(*x, i):
        return decode_attention(q[:, :, 0], *x, group_size=1, impl=i)

    cases = [
        ("needs q", lambda i: attention(q, kv[:, :, :3], kv[:, :, :3], impl=i)),
        ("no multiple of", lambda i: attention(q, torch.ones(1, 3, 4, 32), torch.ones(1, 3, 4, 32), impl=i)),
        ("one floating dtype", lambda i: attention(q, kv.half(), kv, impl=i)),
        ("one floating dtype", lambda i: attention(q.int(), kv.int(), kv.int(), impl=i)),
        ("decreases", lambda i: attention(q, kv, kv, first=int32([[0, 2, 1, 3]]), impl=i)),
        ("int32", lambda i: attention(q, kv, kv, first=torch.zeros(1, 4), impl=i)),
        ("int32", lambda i: attention(q, kv, kv, first=int32([[0, 0, 0]]), impl=i)),
        ("without `first`", lambda i: attention(q, kv, kv, shared=torch.tensor([1]).int(), impl=i)),
        ("needs .N, D", lambda i: linear_logprob(hidden, weight[:, :4], y, impl=i)),
        ("one floating dtype", lambda i: linear_logprob(hidden, weight.half(), y, impl=i)),
        ("0 to 4", lambda i: linear_logprob(hidden, weight, torch.tensor([0, 1, 5]), impl=i)),
        ("0 to 4", lambda i: linear_logprob(hidden, weight, torch.tensor([0, 1, -100]), impl=i)),
        ("integer targets", lambda i: linear_logprob(hidden, weight, y.float(), impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=0.0, impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=-1.0, impl=i)),
        ("above 0", lambda i: linear_logprob(hidden, weight, y, temperature=float("nan"), impl=i)),
        ("needs q", lambda i: decode(kv, kv, None, kv.expand(2, -1, -1, -1), kv, i=i)),
        ("one floating dtype", lambda i: decode(kv.half(), kv.half(), None, kv, kv, i=i)),
        ("q on cpu, k on meta, v on cpu; needs one device", lambda i: attention(q, kv.to("meta"), kv, impl=i)),
        ("first on meta", lambda i: attention(q, kv, kv, first=int32([[0, 0, 0, 0]]).to("meta"), impl=i)),
        ("targets on meta", lambda i: linear_logprob(hidden, weight, y.to("meta"), impl=i)),
        ("tail_v on meta", lambda i: decode(kv, kv, None, kv, kv.to("meta"), i=i)),
        ("impl 'cuda'", lambda i: attention(q, kv, kv, impl="cuda")),
    ]
    for sentence, call in cases:
        for impl in ("auto", IMPL):
            with pytest.raises(ValueError, match=sentence):
                call(impl)


@pytest.mark.parametrize(
    "D, dtype, reason", [(48, torch.float32, "head size 48|needs a GPU"), (32, torch.float64, "float64|needs a GPU")]
)
def test_auto_computes_what_the_kernels_cannot(D, dtype, reason):
    """Head size 48 and float64 have no kernel: auto takes torch and is right; triton says why it cannot."""
    q, k, v = (torch.randn(2, 2, 9, D, dtype=dtype) for _ in range(3))
    words, y = torch.randn(30, D, dtype=torch.float64), torch.arange(9)  # any width will do for the log-prob
    one, cache = q[:, :, 0], (k, v, None, v, k)
    calls = [
        (lambda i: attention(q, k, v, impl=i), attention_reference(q, k, v)),
        (lambda i: linear_logprob(words[:9], words, y, impl=i)[0], linear_logprob_reference(words[:9], words, y)[0]),
        (
            lambda i: decode_attention(one, *cache, group_size=1, impl=i),
            prefix_tail_attention_reference(q[:, :, :1], *cache, group_size=1)[:, :, 0],
        ),
    ]
    for call, want in calls:
        assert torch.allclose(call("auto"), want, atol=1e-5)
        with pytest.raises(RuntimeError, match=f"{reason}|float64"):
            call("triton")


@pytest.mark.skipif(dispatch.interpreted() or dispatch.triton is None, reason="needs compiled Triton")
def test_triton_on_a_cpu_tensor_names_the_reason():
    q, kv, words = torch.ones(1, 1, 32), torch.ones(1, 1, 4, 32), torch.ones(5, 8)
    for call in (
        lambda: attention(kv, kv, kv, impl="triton"),
        lambda: linear_logprob(words[:3], words, torch.tensor([0, 1, 2]), impl="triton"),
        lambda: decode_attention(q, kv, kv, None, kv, kv, group_size=1, impl="triton"),
        lambda: dispatch.describe("triton", "cpu"),
    ):
        with pytest.raises(RuntimeError, match="got a cpu tensor, Triton needs a GPU"):
            call()


def test_the_header_says_which_kernels_and_why(monkeypatch):
    for found, why in ((False, "no GPU"), (True, "on the CPU")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert dispatch.describe("auto", "cpu") == f"torch ({why})"
    assert dispatch.describe("torch", "cpu") == "torch (asked for)"


@pytest.mark.skipif(dispatch.interpreted() or dispatch.triton is None, reason="needs compiled Triton")
def test_a_gpu_older_than_the_tiles_takes_torch(monkeypatch):
    tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for capability, want in (((7, 5), "torch"), ((8, 0), "triton"), ((12, 0), "triton")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert dispatch.choose_impl("auto", tensor) == want


@pytest.mark.skipif(dispatch.interpreted() or dispatch.triton is None, reason="needs compiled Triton")
def test_a_tensor_on_the_second_gpu_takes_its_kernels_there(monkeypatch):
    tensor = SimpleNamespace(device=torch.device("cuda", 1), dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert dispatch.choose_impl("auto", tensor) == "triton"
    assert dispatch.on_device(tensor).idx == 1  # the launch makes it current for its time


def test_tiles_by_what_matrix_instructions_a_gpu_has():
    """sm_120 is newer than sm_100 and has no tensor memory: it takes sm_80's."""
    want = {(8, 0): "sm80", (8, 6): "sm80", (8, 9): "sm80", (9, 0): "sm90", (10, 0): "sm100", (12, 0): "sm80"}
    assert {c: dispatch.target_of_capability(c) for c in want} == want


@pytest.mark.skipif(not dispatch.interpreted(), reason="needs TRITON_INTERPRET=1")
def test_interpreter_refuses_bfloat16_and_auto_stays_with_torch():
    q = torch.randn(1, 1, 4, 32, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="bfloat16"):
        attention(q, q, q, impl="triton")
    assert (
        dispatch.choose_impl("auto", torch.ones(1)) == "torch"
        and dispatch.choose_impl("triton", torch.ones(1)) == "triton"
    )

"""Per-token log-prob, log-sum-exp and entropy from hidden states and the head, without an (N, V) tensor. Kernels follow."""

import torch

from kernels.dispatch import autocast_dtype, choose_impl


def linear_logprob_reference(hidden, weight, targets, temperature=1.0):
    """The definition, with the (N, V) logits."""
    logits = hidden @ weight.T / temperature
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], logits.logsumexp(-1), -(logp.exp() * logp).sum(-1)


def linear_logprob(hidden, weight, targets, *, temperature=1.0, impl="auto"):
    dtype = autocast_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        choose_impl(impl, hidden)
        return tuple(x.float() for x in linear_logprob_reference(hidden.to(dtype), weight.to(dtype), targets, temperature))

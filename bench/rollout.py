"""Sampling speed of GPT.generate. Prints one JSON line.

    python -m bench.rollout --mode rl      # 32 prompts x 16 samples, at most 64 new tokens
    python -m bench.rollout --mode eval    # 400-token shared prefix, 48 questions x 32 samples, at most 48 new tokens

The weights are random, so next-token probabilities are near uniform: declaring round(rate x vocabulary) end tokens
gives completions of geometric length. `useful` tokens are those up to and with the first end token.
"""

import statistics

import torch

from bench.timing import begin, report, shape_parser, timed


def main():
    p = shape_parser(__doc__)
    p.add_argument("--mode", choices=["rl", "eval"], default="rl")
    p.add_argument("--prompts", type=int, help="default: 32 (rl), 48 (eval)")
    p.add_argument("--samples", type=int, help="default: 16 (rl), 32 (eval)")
    p.add_argument("--prefix", type=int, help="shared leading tokens; default: 0 (rl), 400 (eval)")
    p.add_argument("--max-new", type=int, help="default: 64 (rl), 48 (eval)")
    p.add_argument("--chunk", type=int, help="prompts in one call; default: all")
    p.add_argument("--prompt-lens", type=int, nargs=2, default=(24, 40), help="own tokens of a prompt, from-to")
    p.add_argument("--eos-rate", type=float, default=0.04)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--logprobs", action="store_true", help="also return the log-probs of what was sampled")
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    defaults = {"rl": (32, 16, 0, 64), "eval": (48, 32, 400, 48)}[a.mode]
    for name, value in zip(("prompts", "samples", "prefix", "max_new"), defaults, strict=True):
        if getattr(a, name) is None:
            setattr(a, name, value)
    model, device = begin(a)
    eos = list(range(1, 1 + max(1, round(a.eos_rate * a.vocab))))

    def draw(n: int) -> list[int]:  # prompts hold no end token
        return torch.randint(len(eos) + 1, a.vocab, (n,)).tolist()

    prefix = draw(a.prefix)
    prompts = [draw(n) for n in torch.randint(a.prompt_lens[0], a.prompt_lens[1] + 1, (a.prompts,)).tolist()]

    settings = dict(n_samples=a.samples, max_new_tokens=a.max_new, prefix=prefix, eos_id=eos, seed=a.seed)
    settings |= dict(temperature=a.temperature, top_p=a.top_p, return_logprobs=a.logprobs)

    def work(part=prompts):
        useful, size = 0, a.chunk or len(part)
        for i in range(0, len(part), size):
            with device.autocast():
                out = model.generate(part[i : i + size], **settings)
            useful += int(out.lengths.sum())
            assert bool((out.finished | (out.lengths == a.max_new)).all())
        return useful

    work(prompts[: max(1, a.prompts // 4)])
    times, useful, cpu = timed(work, a.repeats)
    seconds, mean_len = statistics.median(times), useful[0] / (a.prompts * a.samples)
    figures = dict(useful_tokens_per_s=useful[0] / seconds, s_whole_set=seconds, mean_len=mean_len)
    report(a, f"rollout {a.mode}", times, cpu, **figures)


if __name__ == "__main__":
    main()

"""What an RL step logs: metrics of its rollouts and of its updates (docs/metrics.md), and rollouts to read."""

from data.math_qa import extract_answer, reward
from data.pass_at_k import sample_row
from data.tokenizer import decode


def update_metrics(results: list[dict], with_kl: bool) -> dict:
    """Metrics of a batch from the sums of its updates. Means over tokens with a gradient are None where there are none,
    and so is the KL where no reference is kept."""
    tokens = sum(r["tokens"] for r in results)

    def mean(key: str) -> float | None:
        return sum(r[key] for r in results) / tokens if tokens else None

    def most(key: str, fold=max) -> float | None:
        return fold(r[key] for r in results) if tokens else None

    metrics = {
        "train/loss": sum(r["loss"] for r in results) / len(results),
        "train/grad_norm": sum(r["grad_norm"] for r in results) / len(results),
        "policy/kl": mean("kl") if with_kl else None,
        "policy/clip_frac": mean("clipped"),
        "policy/entropy": mean("entropy"),
        "policy/ratio_min": most("ratio_min", min),
        "policy/ratio_max": most("ratio_max"),
    }
    if "sampler_kl" in results[0]:
        metrics |= {"policy/sampler_kl": mean("sampler_kl"), "policy/sampler_ratio_max": most("sampler_ratio_max")}
    return metrics


def rollout_metrics(batch, group_size: int) -> dict:
    """Metrics of the completions of a train_rl.Batch, those of groups without signal included."""
    groups = batch.rewards.view(-1, group_size)
    lengths, texts, template = batch.lengths.float(), batch.texts, batch.template
    return {
        "reward/mean": batch.rewards.mean().item(),
        "reward/std": batch.rewards.std().item(),
        "reward/hits": sum(reward(*pair, template) == 1 for pair in zip(texts, batch.gold, strict=True)),
        "reward/frac_zero_std_groups": (groups == groups[:, :1]).all(dim=1).float().mean().item(),
        "completion/len_mean": lengths.mean().item(),
        "completion/len_max": int(lengths.max()),
        "completion/len_mean_finished": lengths[batch.finished].mean().item() if batch.finished.any() else None,
        "completion/frac_truncated": 1 - batch.finished.float().mean().item(),
        "completion/parse_failure": sum(extract_answer(t, marker=template.marker) is None for t in texts) / len(texts),
        "completion/tokens": int(batch.lengths.sum()),
    }


def samples_to_read(batch, group_size: int, enc) -> list[dict]:
    """Rollouts of a train_rl.Batch to read: the first of the first two questions, and a right one, if any was."""
    second = group_size % len(batch.texts)  # the first again, where a batch is one question
    rows = []
    for i in dict.fromkeys([0, second, int(batch.rewards.argmax())]):
        prompt = decode(enc, [t for t in batch.prompts[i] if t != enc.eot_token])
        rows.append(sample_row(prompt, batch.texts[i], batch.gold[i], batch.rewards[i].item(), batch.template))
    return rows


def note_without_signal(first: int, metrics: dict) -> None:
    """The last line of a run in which no group had a signal. `metrics`: of its last batch."""
    what = f"note: from step {first} on, no group had both right and wrong completions, so RL had nothing to learn from"
    sparse = "a larger --group-size, an easier --task, a later checkpoint, or SFT first (train_sft.py)"
    print(f"{what}; try {'a harder --task' if metrics['reward/mean'] == 1 else sparse}")

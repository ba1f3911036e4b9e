"""The settings of every study, and what its runs cost: smoke, laptop, lab, tuning, real-small. plan.py unfolds them.

Settings that belong together stand in one row (fmt: skip), so that a study is seen at a glance."""

BENCHMARKS = ["lastword", "events", "facts", "twohop", "tools", "apply"]
REAL_BENCHMARKS = ["lambada", "hellaswag", "arc_easy", "arc_challenge", "piqa", "openbookqa"]

# Steps and checkpoints: docs/analysis_plan.md. Rates: chosen on validation questions (docs/tuning.md). `early`, `late`:
# the primary checkpoints (steps), `others`: those judged beside them; `at_early`: what differs at the early one.
LAPTOP = dict(
    world=[],
    pretrain=dict(steps=6400, horizon=12800, batch_tokens=1280, lr=2.5e-3, micro_batch_size=2, dtype="bfloat16",
                  eval_every=800),
    save_at=[100, 400, 800, 1600, 2400, 3200, 5120, 6400], early=2400, late=6400, others=[3200, 5120],
    seeds=1, shots=[8, 0], early_methods=["rl", "sft", "sft_rl"],
    pool=250, passes=[5, 24], start_passes=5, follow=3,  # SFT→RL begins after start_passes of SFT
    rl=dict(steps=48, lr=2e-4), sft=dict(lr=2e-4), gold=dict(lr=4e-4), sft_rl=dict(steps=48, lr=2e-4),
    parallel=dict(steps=48, lr=6e-4, sft_lr=6e-4),
    at_early=dict(rl=dict(steps=144), sft=dict(lr=1e-4), gold=dict(lr=2e-4),
                  sft_rl=dict(steps=144, lr=1e-4), parallel=dict(steps=144)),
    trials=dict(rl=3, sft=3, gold=3, sft_rl=3, parallel=3),  # of docs/tuning.md, at each of the two checkpoints
    test=dict(limit=400, bench_limit=200, n_samples=32, k=[1, 8, 32]), val=dict(limit=100, n_samples=32, k=[1, 8, 32]),
    beyond="long",  # the questions that are longer than what pre-training read
)  # fmt: skip
LAB = dict(
    seeds=3, early_methods=["rl", "sft", "sft_rl", "parallel", "gold"],
    axis=dict(pools={64: [5, 24, 60], 250: [5, 24, 60], 1000: [5, 24, 60], 4000: [5]},  # passes of SFT
              gold={1000: [5, 24]},  # of SFT-Gold, where fewer
              rl_after={64: [5, 24, 60], 250: [24, 60], 1000: [5, 24], 4000: [5]}, limit=200),
    hot=dict(temperature=1.0, top_p=1.0, limit=200), c8_seeds=3,
    c9=dict(sort=dict(limit=512, n_samples=64, k=[1, 8, 32], temperature=1.0, top_p=1.0), prompts_per_step=16, few=5,
            many=64, steps=40),
)  # fmt: skip
TUNING = dict(  # rates tried, as many for each method; parallel's are both its rates
    trial_rates=dict(rl=[5e-5, 1e-4, 2e-4], sft_rl=[5e-5, 1e-4, 2e-4], sft=[1e-4, 2e-4, 4e-4], gold=[1e-4, 2e-4, 4e-4],
                     parallel=[1.5e-4, 3e-4, 6e-4]),
    trial_at_early=dict(rl=dict(steps=72), sft_rl=dict(steps=72), parallel=dict(steps=72)),
    val=dict(limit=200, bench_limit=200, n_samples=32, k=[1, 8, 32]),
)  # fmt: skip
SMALL_RL = dict(task="gsm8k", steps=12, prompts_per_step=8, group_size=8, max_new_tokens=96, dtype="bfloat16")
PRESETS = {
    "smoke": dict(
        world=["--tokens", "600000"],
        pretrain=dict(steps=60, batch_tokens=2560, micro_batch_size=4, eval_every=20), save_at=[20, 60],
        early=60, late=60, others=[], seeds=1, shots=[4, 0], trials={}, pool=64, passes=[1, 2], start_passes=1,
        early_methods=[], rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8), follow=2,
        sft=dict(lr=3e-4, batch_size=16), gold=dict(lr=3e-4, batch_size=16),
        sft_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8),
        parallel=dict(steps=4, lr=2e-4, sft_lr=2e-4, prompts_per_step=8, group_size=8, batch_size=16),
        test=dict(limit=16, n_samples=32, k=[1, 8, 32]), val=dict(limit=8, n_samples=32, k=[1, 8, 32]),
    ),
    "laptop": LAPTOP | dict(pretrain_threads=2),  # one alone; the lab has two to run side by side
    "lab": LAPTOP | LAB,
    "tuning": LAPTOP | TUNING,
    "real-small": dict(  # every path on real data; `corpus`: what data.prepare is told
        corpus=["$REAL_DATA/general", "--math", "$REAL_DATA/gsm8k/train.jsonl", "--block-size", "768"],
        task="gsm8k", benchmarks=REAL_BENCHMARKS, shots=[2, 0], trials={},
        pretrain=dict(preset="small", steps=1000, block_size=768, batch_tokens=1536, lr=3e-3, micro_batch_size=2,
                      dtype="bfloat16", eval_every=100),
        save_at=[1000], early=1000, late=1000, seeds=1,
        rl=SMALL_RL | dict(lr=1e-4), sft=dict(task="gsm8k", steps=150, lr=1e-3, batch_size=16, dtype="bfloat16"),
        sft_rl=SMALL_RL | dict(lr=5e-5), parallel=SMALL_RL | dict(lr=3e-4, sft_lr=3e-4, batch_size=16),
        test=dict(limit=48, bench_limit=100, n_samples=8, k=[1, 8], max_new_tokens=96, dtype="bfloat16"), val={},
        seconds=dict(pretrain=450, rl=90, sft=150, sft_rl=90, parallel=120, eval=80),  # of each run
    ),
}  # fmt: skip
# Rough seconds on one core with AVX-512 and bfloat16: a step of each stage (RL: 48 questions x 16); a completion
# 0-shot and few-shot.
SECONDS = {"train_pretrain.py": 0.0717, "train_rl.py": 1.9, "train_sft.py": 0.34, "merge.py": 2.3}
COMPLETION = 1 / 800, 1 / 400
FASTER = {1: 1.0, 2: 1.6}  # pre-training with two threads, on two cores that do nothing else (bench/README.md)
# How many times as long it took on a core with AVX2 and no bfloat16, as docs/results/laptop/report.md says by stage (of
# pre-training, which had two threads there: with one): two cores of a virtual machine (AMD EPYC) to itself.
WITHOUT_BFLOAT16 = {"train_pretrain.py": 3.6, "train_rl.py": 2.3, "train_sft.py": 2.6, "merge.py": 3.3}
WITHOUT_BFLOAT16 |= {"evaluate.py": 1.9}

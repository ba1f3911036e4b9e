"""The settings of every study, and what its runs cost: smoke, laptop, lab, real-small. plan.py unfolds them into runs.

Settings that belong together stand in one row (fmt: skip), so that a study is seen at a glance."""

BENCHMARKS = ["lastword", "events", "facts", "twohop", "tools", "apply"]
REAL_BENCHMARKS = ["lambada", "hellaswag", "arc_easy", "arc_challenge", "piqa", "openbookqa"]

# Rates: chosen on validation questions at one checkpoint, as many trials for each method (docs/tuning.md). Steps: what
# the time allows. `early` and `late`: the primary checkpoints (steps), `others`: those post-trained beside them.
LAPTOP = dict(
    world=[],
    pretrain=dict(steps=6400, batch_tokens=1280, lr=2.5e-3, micro_batch_size=2, dtype="bfloat16", eval_every=800),
    save_at=[100, 400, 800, 1600, 3200, 6400], early=1600, late=6400, others=[3200],
    seeds=1, other_seeds=1, gold_seeds=1, shots=[8, 0],
    trials=dict(rl=6, sft=6, gold=6, sft_rl=6, parallel=6, gold_rl=0),
    rl=dict(steps=48, lr=1e-4, save_every=16), sft=dict(steps=240, lr=1e-3, save_every=80),
    gold=dict(steps=240, lr=2e-3, save_every=80), sft_rl=dict(steps=48, lr=5e-5, save_every=16),
    parallel=dict(steps=48, lr=3e-4, sft_lr=3e-4, save_every=16),
    test=dict(limit=400, n_samples=32, k=[1, 8, 32]), val=dict(limit=100, n_samples=32, k=[1, 8, 32]),
    pools={250: 1}, few_epochs=4, many_epochs=60,  # C3: seeds of each pool of questions
)  # fmt: skip
LAB = dict(
    seeds=5, late_seeds=4, others=[3200, 800], other_seeds=2, gold_seeds=2, control_seeds=3, shots=[8, 0, 1, 4],
    gold_rl=dict(steps=48, lr=5e-5),  # as SFT→RL
    pools={250: 3, 1000: 1},
    c4=dict(  # models: pre-training flags and, of a second pre-training, its seed's distance; RL's rate of each model
        models={"heavy": dict(mix="math-heavy"), "large": dict(preset="world-4x"), "base2": dict(seed=1),
                "heavy2": dict(mix="math-heavy", seed=1)},
        lr={"base": 2e-4, "heavy": 1e-4, "large": 1e-4, "base2": 2e-4, "heavy2": 1e-4}, seeds=1,  # docs/tuning.md
    ),
    wide=dict(limit=100, n_samples=256, k=[1, 8, 32, 256]),  # C5 at two temperatures
    c10_models=["heavy", "base2", "heavy2"],
    c8_seeds=8,  # of RL at the early checkpoint
    c9=dict(sort=dict(limit=512, n_samples=64, k=[1, 8, 32], temperature=1.0, top_p=1.0), prompts_per_step=16, few=5,
            many=64, steps=40, points=4),
    k1=dict(  # by seed: times SFT's updates, times its rate
        first={1: [1 / 8, 1 / 2, 1, 2, 4], 0.5: [1]}, later={1: [1 / 8, 1], 0.5: [1]},
    ),
)  # fmt: skip
SMALL_RL = dict(task="gsm8k", steps=12, prompts_per_step=8, group_size=8, max_new_tokens=96, dtype="bfloat16")
PRESETS = {
    "smoke": dict(
        world=["--tokens", "600000"],
        pretrain=dict(steps=60, batch_tokens=2560, micro_batch_size=4, eval_every=20), save_at=[20, 60],
        early=60, late=60, others=[], seeds=1, other_seeds=0, gold_seeds=1, shots=[4, 0], trials={},
        rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        sft=dict(steps=6, lr=3e-4, batch_size=16), gold=dict(steps=6, lr=3e-4, batch_size=16),
        sft_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8, save_every=2),
        gold_rl=dict(steps=4, lr=1e-4, prompts_per_step=8, group_size=8),
        parallel=dict(steps=4, lr=2e-4, sft_lr=2e-4, prompts_per_step=8, group_size=8, batch_size=16),
        test=dict(limit=16, n_samples=32, k=[1, 8, 32]), val=dict(limit=8, n_samples=32, k=[1, 8, 32]), pools={},
    ),
    "laptop": LAPTOP,
    "lab": LAPTOP | LAB,
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
# Rough seconds on one core: a laptop step of each stage; a token of pre-training; a completion 0-shot and few-shot.
SECONDS = {"train_rl.py": 3.2, "train_sft.py": 0.6, "merge.py": 3.7}
TOKEN, COMPLETION, LARGE = 1 / 10500, (1 / 800, 1 / 400), 2.1  # LARGE: how much slower the large model is

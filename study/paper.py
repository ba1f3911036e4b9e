"""The paper's numbers on GSM8K for its 1B model (50B tokens), percent, and where they come from.

Sources: pass@k digitised from the paper's figures (RL, SFT, SFT-Gold, SFT->RL by checkpoint; parallel averaging; base
by number of shots), error mostly about 0.3 points, up to 1.6 (RL's pass@8 at 20B); base8 and base0 come from two
figures, which differ by as much. Averages from evaluation files that its authors published. None: no such number (the
published SFT->RL averages belong to other, earlier runs).
"""

# pre-training tokens in B: method: (pass@1, pass@8, pass@32, average of six benchmarks)
PAPER = {
    4: {
        "base8": (1.75, 10.15, 24.79, 37.37),
        "base0": (1.52, 11.6, 26.76, 37.37),
        "rl": (15.59, 25.26, 35.5, 37.38),
        "sft": (15.36, 35.5, 51.86, 32.92),
        "gold": (34.96, 60.81, 74.75, 32.27),
        "sft_rl": (27.6, 41.25, 49.66, None),
    },
    10: {
        "base8": (3.66, 19.33, 41.02, 41.38),
        "base0": (4.17, 22.29, 42.0, 41.38),
        "rl": (29.77, 49.09, 61.48, 41.49),
        "sft": (24.45, 47.48, 63.76, 36.5),
        "gold": (44.2, 69.33, 81.58, 37.07),
        "sft_rl": (40.66, 53.77, 60.65, None),
        "parallel": (27.25, 54.22, 71.04, None),
    },
    20: {
        "base8": (7.81, 31.26, 54.28, 44.28),
        "base0": (5.91, 29.95, 55.19, 44.28),
        "rl": (47.39, 63.94, 72.8, 44.4),
        "sft": (31.58, 56.07, 70.2, 39.53),
        "gold": (50.17, 74.95, 83.85, 38.5),
        "sft_rl": (48.52, 59.61, 65.28, None),
        "parallel": (36.23, 63.15, 77.48, 44.13),
    },
    44: {
        "base8": (14.81, 46.03, 67.48, 47.25),
        "base0": (4.25, 20.17, 37.38, 47.25),
        "rl": (54.76, 72.05, 80.58, 47.58),
        "sft": (37.75, 60.75, 73.84, 41.13),
        "gold": (54.08, 78.67, 87.79, 40.08),
        "sft_rl": (53.63, 64.85, 70.28, None),
        "parallel": (47.93, 73.24, 84.53, None),
    },
}

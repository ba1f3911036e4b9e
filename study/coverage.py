"""How often the study's 95 % intervals hold the true difference, where pre-trainings truly differ: by simulation.

    python -m study.coverage        # half a minute

A difference of two methods on question q of pre-training s is effect + a_s + b_q + c_sq, all normal: a_s the true
effect of the pre-training, b_q of the question, c_sq what only that model does on that question. The true difference is
`effect`: over all pre-trainings and questions. Beside it the interval over questions alone, as if there were one
pre-training.
"""

import numpy as np

from data.files import UserError
from study.stats import Difference

QUESTIONS, EACH, EFFECT = 400, 0.3, 0.1  # sd of b_q and of c_sq
ROWS = [(seeds, sd) for seeds in (3, 5) for sd in (0.0, 0.01, 0.03, 0.1)]


def draw(rng: np.random.Generator, seeds: int, sd: float) -> Difference:
    rows = EFFECT + sd * rng.standard_normal((seeds, 1)) + EACH * rng.standard_normal((1, QUESTIONS))
    return Difference([(rows + EACH * rng.standard_normal((seeds, QUESTIONS)), np.ones(QUESTIONS))])


def coverage(seeds: int, sd: float, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Shares of intervals that hold the effect: the study's, and that over questions alone; the mean half-width."""
    if seeds < 2:
        raise UserError(f"{seeds} seed: nothing is known of another pre-training")
    rng, held, alone, half = np.random.default_rng(seed), 0, 0, 0.0
    for _ in range(draws):
        d = draw(rng, seeds, sd)
        held += abs(d.estimate - EFFECT) <= d.half_width()
        alone += abs(d.estimate - EFFECT) <= 1.96 * d.question_error
        half += d.half_width()
    return held / draws, alone / draws, half / draws


def main() -> None:
    print(f"{QUESTIONS} questions, sd over questions {EACH}; 2,000 draws a row")
    print("| pre-trainings | their sd, points | covers, % | mean half-width, points | over questions alone, % |")
    print("| --- | --- | --- | --- | --- |")
    for seeds, sd in ROWS:
        held, alone, half = coverage(seeds, sd)
        print(f"| {seeds} | {100 * sd:g} | {100 * held:.1f} | {100 * half:.1f} | {100 * alone:.1f} |", flush=True)


if __name__ == "__main__":
    main()

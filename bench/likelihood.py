"""Items per second of GPT.continuation_logprobs on multiple-choice questions. Prints one JSON line.

    python -m bench.likelihood     # 500 items x 4 choices, contexts of 40-80 tokens, choices of 2-4

Requests are token ids; the peer tokenizes words (a dictionary look-up each, 6 % of its time).
"""

import random
import statistics

from bench.timing import begin, report, shape_parser, timed


def main():
    p = shape_parser(__doc__)
    p.add_argument("--items", type=int, default=500)
    p.add_argument("--choices", type=int, default=4)
    p.add_argument("--ctx-lens", type=int, nargs=2, default=(40, 80))
    p.add_argument("--cont-lens", type=int, nargs=2, default=(2, 4))
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    model, device = begin(a)
    rng = random.Random(a.seed)

    def words(low, high):
        return [rng.randrange(3, a.vocab) for _ in range(rng.randint(low, high))]

    contexts = [words(*a.ctx_lens) for _ in range(a.items)]
    choices = [[words(*a.cont_lens) for _ in range(a.choices)] for _ in range(a.items)]

    def work():
        with device.autocast():
            return model.continuation_logprobs(contexts, choices)

    work()
    times, results, cpu = timed(work, a.repeats)
    assert [len(item) for item in results[0]] == [a.choices] * a.items
    rate = a.items / statistics.median(times)
    report(a, "multiple-choice log-likelihood", times, cpu, items_per_s=rate, first_score=results[0][0][0][0])


if __name__ == "__main__":
    main()

"""Which style an answer is written in.   pytest -q tests/data/test_styles.py"""

import random

import pytest

from data.styles import style_of
from data.world_math import DRAW, FORMATS, STYLES, question_sentences, solution


@pytest.mark.parametrize("form", FORMATS)
def test_every_style_is_told_in_every_format(form):
    """Of a hundred questions, in whatever format of the text; without work, none."""
    rng = random.Random(0)
    for _ in range(100):
        chain = DRAW["gsm"](rng)
        sentences = question_sentences(chain, rng)
        for style in STYLES:
            work, answer = solution(chain, style, sentences)
            before, _, after = form.partition("{work}")
            completion = (" {work}" + after).format(work=work, answer=answer).split("\n")[0]
            assert style_of(completion) == style, completion
            assert style_of(completion.replace(work, "").replace("  ", " ")) == "none"
            assert before

"""In which of the world's styles is an answer written? By its signs alone; data/world_math.py writes them."""

import re

ANSWER = re.compile(r"(?:####|\bSo\b|\bThe answer is\b)?\s*\d+(?:\.\d+)?\.?\s*$")  # of any of the four formats


def style_of(completion: str) -> str:
    """equations ("16.3+2=18.3*2=36.6"), running ("16.3>18.3>36.6"), nested ("((16.3+2)*2)"), retold (words), or "none":
    nothing stands before the answer."""
    work = ANSWER.sub("", completion).strip()
    if not work:
        return "none"
    for sign, style in (("=", "equations"), (">", "running"), ("(", "nested")):
        if sign in work:
            return style
    return "retold"

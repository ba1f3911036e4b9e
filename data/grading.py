r"""What answer a completion states, and whether it is right. Numbers are read exactly or not at all: a part of one
("2" of "2 2/3", "30" of "12:30") is never taken for the number.

| read as a number                                            | not a number                                      |
|-------------------------------------------------------------|---------------------------------------------------|
| 1,234.50   1 234 (any space)   1{,}234   10\,000   .5   007 | 3 4   1,2   1.234,5   1.2.3   12:30   3-5   5 or 6 |
| -42 with any dash   +7   $5   -$5.50   €5   (5)   {5}   5.  | --1   5!   52_8   2^5   2x   \sqrt{2}   2\pi        |
| 3/4   1 1/2   2½   \frac{1}{2}   \frac12   1\frac{1}{2}     | 1/0   2 5/3   five   42 million   2 feet 3 inches  |
| 1e-06   42%   90^\circ   42 m   72 dollars   5\text{ cm}^2  | 1e999   what is longer than 200 characters        |
| x = 5   Answer: 42                                          | 6*7 = 42   5x - 7 = 0                             |

A percent sign, a currency and a unit are dropped, never converted.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

MAX_LENGTH = 200  # characters of a number; what is longer is compared as text: no big-number work on babble
WINDOW = 1000  # characters before the last digit in which the last number is sought
SCANNED = 50_000  # characters of a text that are read for its boxes, from the last box back
FIELDS = 16  # fields behind a `####` that are looked at


# ---------------------------------------------------------------- one spelling
def _ascii_forms() -> dict[int, str]:
    """Other forms of the characters that numbers are written with: code point -> ASCII."""
    forms = dict.fromkeys(map(ord, "‐‑‒–—―−﹣"), "-") | dict.fromkeys(map(ord, "⁄∕"), "/")
    forms |= dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
    forms |= dict.fromkeys([0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF], "")  # no width
    forms |= {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}  # full width
    for code in [0xB2, 0xB3, 0xB9, *range(0xBC, 0xBF), *range(0x2070, 0x208A), *range(0x2150, 0x215F), 0x2189]:
        kind, _, parts = unicodedata.decomposition(chr(code)).partition(" ")
        plain = "".join(chr(int(part, 16)) for part in parts.split()).replace("⁄", "/")
        mark = {"<super>": "^", "<sub>": "_", "<fraction>": " "}.get(kind)  # 5² is 5^2, 2½ is 2 1/2
        if mark and plain.isascii():
            forms[code] = mark + plain
    return forms


_ASCII = _ascii_forms()
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})++|[1-9][0-9]{0,2}(?: [0-9]{3})++|[0-9]++)(?![0-9])"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]++(?!\.\.|…))?|(?<![0-9])\.[0-9]++)(?:[eE][-+]?[0-9]++)?"
_PART = rf"(?:\{{ ?([-+]?{_DECIMAL}) ?\}}|([0-9]))"  # numerator or denominator of a \frac
_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\s*\\!\s*|\\(?:left|right)(?![a-z])|\\displaystyle|\\[()\[\]]", ""),
        (r"\{,\}", ","),
        (r"\\[,;: ]|\\quad|~", " "),
        (r"\\(?=[$%])", ""),
        (r"\^ ?\{? ?\\circ ?\}?|\\degree", "°"),
        (r"\\(?:text|mbox|hbox|textbf|textit|textrm|mathrm|mathbf|operatorname) ?\{([^{}]*)\}", r" \1 "),
        (rf"\\[dtc]?frac ?{_PART} ?{_PART}", r" \1\2/\3\4"),
        (r" +\^", "^"),
    ]
]


def to_ascii(text: str) -> str:
    return text if text.isascii() else text.translate(_ASCII)


def _plain(answer: str) -> str:
    """A short answer without what only typesets it."""
    text = to_ascii(answer)
    if "\\" in text or "{" in text or "~" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    text = re.sub(r"[ \t]{2,}", " ", text).strip()
    braced = re.fullmatch(r"(\{+)([^{}]*)(\}+)", text)
    return braced[2].strip() if braced and len(braced[1]) == len(braced[3]) else text


def clean(answer: str) -> str:
    """The text by which answers that are no numbers are compared: without dollar signs, thousands commas (but for
    those of a bracketed list), spaces (but for those between digits) and one final period."""
    if len(answer) > 10 * MAX_LENGTH:
        return answer
    text = _plain(answer).replace("$", "")
    if "(" not in text and "[" not in text:
        text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" (?![0-9])|(?<![0-9]) ", "", text).removesuffix(".")


# ---------------------------------------------------------------- numbers
def _either(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


_MIXED = r"(?:([0-9]++) (?:and )?(?=[0-9]+/[0-9]))?"
_NUMBER = re.compile(  # sign, sign behind the currency, whole part of a mixed number, top, bottom
    rf"([-+]?) ?(?:US\$|[$€£¥₹]|(?:USD|EUR|GBP|Rs\.?)(?= ?[0-9]))? ?([-+]?)"
    rf"{_MIXED}({_DECIMAL})(?: ?/ ?([-+]?{_DECIMAL}))?"
)
_BEFORE = re.compile(  # what may stand before a number
    r"[\s*_`'\"#]*"
    + _either(
        r"(?i:[a-z'*_ ]{0,40}?\b(?:answer|result|total)\b[*_ ]*(?:is\b|:|=)[\s*_:=]*)",  # The answer is:
        r"\$?[A-Za-z]? ?[=≈] ?",  # x =
        r"\\approx ?",
    )
    + "?"
)
_CLOSERS = r"[\s.,;:?*_`'\"|)\]}#$\\]*\Z"
_SCALES = r"hundreds? thousands? millions? billions? trillions? hal(?:f|ves) thirds? fourths? fifths? sixths? sevenths?"
_SCALES += (
    r" eighths? ninths? tenths? hundredths? thousandths? quadrillions? dozens? lakhs? crores? grand bn mn bil mil"
)
_SCALES = _either(*_SCALES.split())
NO_UNITS = (
    "or to and x by plus minus times divided over out through until squared cubed factorial point mod base pi sqrt"
)
NO_UNITS = _either(_SCALES, "in base", *NO_UNITS.split())
_GOES_ON = r"(?!(?:so|thus|hence|since|because|as|in|at|for|of|from|after|is)\b)[a-z.]+,? (?:and )?[-$.]?[0-9]"
_AFTER = re.compile(  # what may stand behind it
    " ?(?:°[CF]?|[%€£¥₹$¢])?"
    + _either(
        _CLOSERS,
        r"[.;?]\s+[^\s0-9]|(?:[,:]\s+|\s+\()(?!or\b|and\b|base\b)[A-Za-z]{2}",  # a new sentence, clause or remark
        # 5cm, 5th, but not 5x or 5 ft 3
        r"(?:[kcm]m|[km]g|m[lL]|lbs?|ft|oz|hrs?|mins?|mph|st|nd|rd|th)(?![A-Za-z]|,? (?:and )?[0-9])",
        rf"[ -]+[mgshlLVWJNCKF](?:/[a-z]+)?(?:\^[23])?{_CLOSERS}",  # 5 m, but not 5 x
        # 5 apples, but not 5 million, 5 or 6, 5 feet 3 inches
        rf"[ -]+(?!{NO_UNITS}\b)(?!{_GOES_ON})(?:[A-Za-z]{{2}}|an? [A-Za-z]{{2}})",
    )
)


def _fraction(decimal: str) -> Fraction | None:
    """Value of a match of _DECIMAL."""
    number, _, exponent = decimal.lower().partition("e")
    if len(decimal) > MAX_LENGTH or len(exponent) > 4 or abs(int(exponent or 0)) > MAX_LENGTH:
        return None
    return Fraction(re.sub("[, ]", "", number)) * Fraction(10) ** int(exponent or 0)


def _value(match: re.Match) -> Fraction | None:
    """Exact value of a match of _NUMBER; None for 1/0, 2 5/3, two signs, or what is too long."""
    sign, sign2, whole, top, bottom = match.groups(default="")
    top, bottom = _fraction(top), _fraction(bottom or "1")
    if top is None or not bottom or (sign and sign2) or len(whole) > MAX_LENGTH or (whole and not 0 < top < bottom):
        return None
    value = int(whole or 0) + top / bottom
    return -value if "-" in sign + sign2 else value


def _leading_number(text: str) -> tuple[re.Match, str] | None:
    """(the number that a plain text begins with, what follows it), or None."""
    text = text[_BEFORE.match(text).end() :]
    text = re.sub(r"^\(([^(),]*)\)", r"\1", text)
    match = _NUMBER.match(text)
    return (match, text[match.end() :]) if match else None


@lru_cache(maxsize=4096)  # golds come again with every sample
def _parse(answer: str) -> Fraction | None:
    found = _leading_number(_plain(answer))
    return _value(found[0]) if found and _AFTER.match(found[1]) else None


def parse_number(answer: str) -> Fraction | None:
    """Exact value of an answer that is a number in one of the forms above; None for anything else."""
    return _parse(answer) if len(answer) <= MAX_LENGTH else None


def answers_equal(a: str | None, b: str | None) -> bool:
    """Same number, exactly, or same cleaned text. None never equals None."""
    if a is None or b is None:
        return False
    value, other = parse_number(a), parse_number(b)
    if value is not None and other is not None:
        return value == other
    text = clean(a)
    return bool(text) and text == clean(b)


# ---------------------------------------------------------------- what a completion states
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|([{}])|\\.|[^\\{}\s]+", re.DOTALL)
_LAST = re.compile(
    rf"(?:(?<![0-9A-Za-z)\]}}])[-+])?(?:US\$|[$€£¥₹])?{_MIXED}{_DECIMAL}(?:/[-+]?{_DECIMAL})?",
)
_BROKEN_BEFORE = re.compile(
    _either(
        r"[0-9][.:/']|[0-9]{4}-[0-9]+-|[0-9] or ",  # of 12:30, 1.2.3, 1/2/3, 1'000, 2024-01-05, "5 or 6"
        r"(?<![0-9,])[0-9]+,|\.[0-9]+,",  # of 0,5 and 1.234,5, but 1,2,3 is a list
        r"[\^_]\{?|\\?sqrt ?(?:\[[0-9]+\])?[({]?|√|± ?",  # of x^5, \sqrt[3]{5}, sqrt(5), ±5
        r"[0-9]\*\*|[0-9]\.[0-9]*(?:\(|\\overline ?\{)|\bbase ",  # of 5**2, 0.(3), 101 in base 2
    )
    + r"\Z"
)
_BROKEN_AFTER = re.compile(  # of 5٢, 12:30, 5^2, 5x, 5\pi, 5M and "5 million"
    _either(
        r"\d|[.,:/][0-9]|[\^_√]",
        r"[abcikntxyzπKMB](?![A-Za-z])",
        r" ?\\?(?:pi\b|sqrt|times|cdot)",
        rf" ?{_SCALES}\b| (?:factorial|squared|cubed)\b",
    )
)


def boxed_answer(text: str) -> str | None:
    r"""Content of the last complete `\boxed{..}` that holds something, braces nested to any depth."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    end, left = len(text), SCANNED
    for box in reversed(list(_BOX.finditer(text))):
        begin = box.start()
        while begin and text[begin - 1] == "\\":
            begin -= 1
        if (box.start() - begin) % 2:
            continue  # a line break before "boxed"
        depth, held, last = 1, False, min(end, box.end() + left)
        for match in _BRACES.finditer(text, box.end(), last):
            if match.lastindex is None:
                held = True
            else:
                depth += -1 if match[0] == "}" else 1
            if not depth:
                last = match.start()
                break
        if held and not depth:
            return text[box.end() : last].strip()
        if depth:
            end = box.start()  # never closed: one before it that is closed ends before it
        left -= last - box.end()
        if left <= 0:
            break
    return None


def last_number(text: str) -> str | None:
    """The last number of a text; None where it is a part of something else."""
    text = to_ascii(text)
    end = 1 + max(text.rfind(digit) for digit in "0123456789")
    window = _plain(text[max(0, end - WINDOW) : end + 20])
    matches = list(_LAST.finditer(window))
    if not matches or len(matches[-1].group()) > MAX_LENGTH:
        return None
    begin, end = matches[-1].span()
    broken = _BROKEN_BEFORE.search(window[:begin]) or _BROKEN_AFTER.match(window[end:])
    return None if broken else window[begin:end]


def extract_answer(text: str, flexible: bool = False, marker: str = "####") -> str | None:
    r"""The answer that a text states, or None. `flexible`: where it states none, the last number.

    Marker "boxed": the last complete `\boxed{..}` decides, and no `####`. Marker "####": the number behind a `####`, on
    its line; else the last box; else, with `flexible`, the last number; else what stands behind the first `####`,
    whatever it is. The first `####` with a number decides: of "#### 72 dollars" and "#### Answer: **72**." it is 72,
    and where a line begins with what is no readable number ("3 4", "3-5"), no later number takes its place.
    """
    if marker == "boxed":
        return boxed_answer(text) or (last_number(text) if flexible else None)
    stated = ""
    for field in text.split("####", FIELDS)[1:]:
        line = field.lstrip(" \t#").split("\n", 1)[0].strip()
        found = _leading_number(_plain(line[:WINDOW]))
        if found and _AFTER.match(found[1]) and _value(found[0]) is not None:
            heading = re.match(r"\.\s", found[1]) and boxed_answer(text)  # "#### 1. Add", and a box further down
            return heading or found[0].group().strip()
        if box := boxed_answer(line):
            return box
        stated = stated or line
        if found:
            flexible = False
            break
    answer = boxed_answer(text) or (last_number(text) if flexible else None) or stated
    return answer.removesuffix(".").strip() or None

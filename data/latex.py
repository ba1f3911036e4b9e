r"""One spelling of LaTeX answers, by which graders of MATH compare them (data/graders.py). A text is parted into leaves
(commands, numbers, words, signs), these are read into elements of factors and signs, and those are written in one way.
No code is run and no regular expression goes back.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from data.grading import NO_UNITS, to_ascii

LONGEST = 500  # characters of an answer; what is longer is compared as it stands
DEEPEST = 20  # brackets within brackets

_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan log ln exp".split())
_SAME = {
    **dict.fromkeys([r"\cdot", r"\times", "·", "×", "⋅"], "*"),
    **dict.fromkeys([r"\div", "÷"], "/"),
    **dict.fromkeys([r"\le", r"\leq", r"\leqslant"], "≤"),
    **dict.fromkeys([r"\ge", r"\geq", r"\geqslant"], "≥"),
    **dict.fromkeys([r"\ne", r"\neq"], "≠"),
    **dict.fromkeys([r"\emptyset", r"\varnothing"], "∅"),
    **dict.fromkeys([r"\infty", "infinity", "inf"], "∞"),
    **dict.fromkeys([r"\sqrt", "sqrt"], "√"),
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac"], r"\frac"),
    **dict.fromkeys([r"\mid", r"\vert", r"\lvert", r"\rvert"], "|"),
    **{r"\pm": "±", r"\cup": "∪", r"\cap": "∩", r"\in": "∈", r"\lt": "<", r"\gt": ">", r"\approx": "≈"},
    **{"\\" + name: name for name in _FUNCTIONS},
    **dict.fromkeys([r"\dbinom", r"\tbinom"], r"\binom"),
    **{r"\pi": "π", "pi": "π", r"\theta": "θ", r"\lbrace": r"\{", r"\rbrace": r"\}"},
}
_NOTHING = r"\ \! \, \: \; \$ \% \( \) \[ \] \left \right \big \Big \bigl \bigr \Bigl \Bigr "
_NOTHING += r"\quad \qquad \displaystyle \textstyle \boxed \fbox \mathbf \mathbb \mathcal \mathit \vec ~ $ % € £ ¥"
_NOTHING = {r"\ ", *_NOTHING.split()}
_DEGREES = {r"\circ", r"\degree", "°"}  # not among these: one may be the argument of a ^
_TEXT = set(r"\text \textbf \textit \textrm \textnormal \mbox \hbox \mathrm \operatorname".split())
_UNITS = (
    "cm mm km ft feet foot inch inches meter meters mile miles yards gram grams kg pounds degree degrees rad radians "
)
_UNITS = set((_UNITS + "unit units square cubic sq hours minutes seconds days dollars cents percent").split())
_OPEN, _CLOSE = {"(", "[", "{", r"\{", r"\langle", r"\begin"}, {")", "]", "}", r"\}", r"\rangle", r"\end"}
_SEPARATORS = {",": ",", ";": ",", "&": "&", r"\\": ";", "and": ",", "or": ","}
_LEAF = re.compile(r"\\(?:[A-Za-z]+|.)|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[A-Za-z]+|\S", re.DOTALL)
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")


class _Item(NamedTuple):
    """A piece of an element: a sign, or a factor number * top / bottom."""

    number: int | Fraction = 1
    top: str = ""
    bottom: str = ""
    kind: str = ""  # "sign" (which is `top`), "unit" or other "words", "sum" (in brackets), "fraction", "function", ""


class _TooDeep(Exception):
    """More brackets within brackets than an answer has."""


def math_form(answer: str) -> str:
    r"""One spelling of a LaTeX answer: "1/2*√(3)" of \frac{\sqrt3}{2} and of sqrt(3)/2, "[0,1/2)" of [0, 0.5).

    Lower case, without what only typesets, units, the signs of degree, percent and currency, and a leading "x =".
    Fractions are reduced, decimals are fractions, and the number of a term comes first; nothing else is worked out.
    Elements of tuples, intervals, lists and matrices are brought to their forms one by one; those of a set are sorted.
    """
    return answer.strip() if len(answer) > LONGEST else _form(answer)


@lru_cache(maxsize=4096)  # golds come again with every sample
def _form(answer: str) -> str:
    text = to_ascii(answer).rstrip(" .$\n")
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # as JSON writes it, or a line break
    text = re.sub(r" ?\{ ?, ?\}|, ?\\! ?", "", text)
    if not re.search(r"[(\[]|\\\{", text):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    for pair, sign in (("<=", "≤"), (">=", "≥"), ("!=", "≠")):
        text = text.replace(pair, sign)
    leaves = [_SAME.get(leaf, leaf) for leaf in _LEAF.findall(text) if leaf not in _NOTHING]
    try:
        elements, _, _ = _elements(leaves[::-1], 0)
    except _TooDeep:
        return "".join(text.split())
    return ",".join(map(_show, elements))


# --------------------------------------------------------------- leaves to elements
def _elements(todo: list[str], depth: int) -> tuple[list[list[_Item]], list[str], str]:
    """(elements, separators between them, closing bracket). `todo`: leaves, the next one last; taken off as read."""
    elements, between, closing = [[]], [], ""
    while todo:
        leaf = todo.pop()
        if leaf in _CLOSE and depth:
            closing = leaf
            break
        if leaf not in _SEPARATORS:
            _read(leaf, todo, depth, elements[-1])
        elif elements[-1]:
            elements.append([])
            between.append(_SEPARATORS[leaf])
    return (elements, between, closing) if elements[-1] else (elements[:-1], between[:-1], closing)


def _read(leaf: str, todo: list[str], depth: int, items: list[_Item]) -> None:
    """Append what begins with `leaf` to the items of an element."""
    if depth > DEEPEST:
        raise _TooDeep
    if leaf in _DEGREES:
        return
    if leaf in ("^", "_"):
        argument = _show(_argument(todo, depth))
        if not items or items[-1].kind == "sign":
            items.append(_Item(top=leaf + argument, kind="sign"))
        elif argument not in ("", "th", "st", "nd", "rd"):  # degrees, 5th
            items.append(_power(items.pop(), leaf, argument))
    elif leaf == "√":
        index = ""
        if todo and todo[-1] == "[":
            todo.pop()
            index = ",".join(map(_show, _elements(todo, depth + 1)[0]))
        items.append(_Item(top=f"{index}√({_show(_argument(todo, depth))})"))
    elif leaf == r"\frac":
        top, bottom = (_factor(_argument(todo, depth, one_digit=True)) for _ in range(2))
        items.append(_quotient(top, bottom)._replace(kind="fraction"))
    elif leaf in _TEXT:
        _read_text(todo, depth, items)
    elif leaf in _OPEN:
        items.append(_group(leaf, todo, depth))
    elif leaf[0] in "0123456789" or (leaf[0] == "." and len(leaf) > 1):
        items.append(_Item(int(leaf) if leaf.isdigit() else Fraction(leaf)))
    elif leaf[0].isalpha() or leaf in "∞∅":
        word = leaf.lower()
        function = word in _FUNCTIONS or (word in ("f", "g", "h") and todo[-1:] == ["("])
        items.append(_Item(top=word, kind="function" if function else "unit" if word in _UNITS else ""))
    elif leaf[0] == "\\" and leaf[1:].isalpha():  # \alpha, \overline{AB}, \binom{5}{2}
        arguments = []
        while todo and todo[-1] == "{":
            arguments.append(_show(_argument(todo, depth)))
        items.append(_Item(top=leaf + "&".join(arguments)))
    else:
        items.append(_Item(top=leaf, kind="sign"))


def _argument(todo: list[str], depth: int, one_digit: bool = False) -> list[_Item]:
    r"""What stands behind \frac, \sqrt or ^: a group or one leaf, of words a letter; with `one_digit`, 1 of 12."""
    items: list[_Item] = []
    if not todo:
        return items
    leaf = todo.pop()
    if leaf == "{":
        elements, _, _ = _elements(todo, depth + 1)
        return elements[0] if len(elements) == 1 else [_Item(top=",".join(map(_show, elements)))] * bool(elements)
    if len(leaf) > 1 and (leaf[0].isalpha() or (one_digit and leaf.isdigit())):
        todo.append(leaf[1:])
        leaf = leaf[0]
    if leaf == "-" and todo:  # x^-1
        items.append(_Item(top="-", kind="sign"))
        leaf = todo.pop()
    _read(leaf, todo, depth + 1, items)
    return items


def _read_text(todo: list[str], depth: int, items: list[_Item]) -> None:
    r"""Append the {..} of a \text: a unit or other words, a number, or "and" between two elements."""
    if not todo or todo[-1] != "{":
        return
    inner, level = [], 0
    while todo:
        inner.append(todo.pop())
        level += (inner[-1] == "{") - (inner[-1] == "}")
        if not level:
            break
    inner = inner[1:-1]
    if inner and set(inner) <= {"and", "or", ","}:
        todo.append(",")
        return
    elements, _, _ = _elements(inner[::-1], depth + 1)
    if len(elements) == 1 and not (factor := _factor(elements[0])).top:
        items.append(factor)
    elif elements:
        unit = not re.fullmatch(NO_UNITS, inner[0].lower())  # 5 million is not 5
        items.append(_Item(top=",".join(map(_show, elements)), kind="unit" if unit else "words"))


def _group(opening: str, todo: list[str], depth: int) -> _Item:
    """A part in brackets. Round ones and braces around one element are dropped, but for those of a sum."""
    name = _environment(todo) if opening == r"\begin" else ""
    elements, between, closing = _elements(todo, depth + 1)
    if closing == r"\end":
        _environment(todo)
    if len(elements) == 1 and opening in "({" and closing in ("", ")", "}"):
        factor = _factor(elements[0])
        return factor._replace(kind="") if opening == "(" and factor.kind == "fraction" else factor  # 3(1/2) is not 3½
    forms = [_show(element) for element in elements]
    if opening == r"\{":
        forms.sort()
    inside = "".join(form + sign for form, sign in zip(forms, [*between, ""], strict=False))
    return _Item(top=f"{name or opening}{inside}{name or closing}")


def _environment(todo: list[str]) -> str:
    r"""Reads the {name} behind a \begin or \end, and an array's columns. A matrix is one whatever its brackets."""
    names = []
    while todo and todo[-1] == "{" and names in ([], ["array"]):
        name = ""
        while todo and (leaf := todo.pop()) != "}":
            name += leaf.strip("{")
        names.append(name)
    return "matrix" if not names or names[0] in ("matrix", "pmatrix", "bmatrix", "array") else names[0]


# ----------------------------------------------------------------- elements to text
def _trimmed(items: list[_Item]) -> list[_Item]:
    """Without the "x =" at the beginning and the unit at the end."""
    relations = [i for i, item in enumerate(items) if item.kind == "sign" and item.top in "=≈∈<>≤≥≠"]
    if len(relations) == 1 and relations[0] <= 3 and items[relations[0]].top in "=≈∈":
        if all(map(_is_name, items[: relations[0]])):
            items = items[relations[0] + 1 :]
    while items and items[-1].kind == "unit" and any(item.kind not in ("unit", "sign") for item in items):
        items = items[:-1]
        while items[-1].kind == "sign" and items[-1].top in "*/":
            items = items[:-1]
    return items


def _is_name(item: _Item) -> bool:
    r"""x, f (of x), A_1, \alpha, (x,y) or words; no number, root, power or sum."""
    plain = item.kind in ("", "unit", "words", "function") and item.number == 1 and not item.bottom
    return plain and re.match(r"[^\W\d]|\\|\([a-z,]+\)\Z", item.top) is not None and "^" not in item.top


def _terms(items: list[_Item]) -> list[tuple[str, list[_Item]]]:
    """(signs before it, its items) of each term of an element; times and divided-by belong to a term."""
    terms, signs, term = [], "", []
    for item in items:
        if item.kind != "sign" or (item.top in "*/" and term):
            term.append(item)
            continue
        if term:
            terms.append((signs, term))
            signs, term = "", []
        signs += item.top
    return [*terms, (signs, term)] if signs or term else terms


def _product(items: list[_Item]) -> _Item:
    r"""The items of a term as one factor, from left to right. The first number is the term's; a proper \frac behind a
    whole number makes it a mixed number; other numbers stay where they are: 3 4 is not 12."""
    number, top, bottom, counted, divided, sign = 1, "", "", False, False, ""
    items = _applied(items) if len(items) > 1 else items
    for place, item in enumerate(items):
        if item.kind == "sign":
            sign = item.top
            if sign == "/" and (divided or place in (0, len(items) - 1)):  # 1/2/3 is a date
                top, sign = top + "/", ""
            continue
        if sign == "/":
            number, top, bottom, _ = _quotient(_Item(number, top, bottom), item)
            divided = counted = True
        elif item.top or item.bottom:
            number, top, bottom = number * item.number, _beside(top, item.top), bottom + item.bottom
        elif not counted and (item.kind == "fraction" or not top):
            number, counted = number * item.number, True
        elif item.kind == "fraction" and not (top or bottom or sign or divided) and 0 < item.number < 1 <= number:
            number += item.number
        else:
            top = f"{top}{'*' if sign else ' '}{item.number}"
        sign = ""
    return _Item(number, top, bottom)


def _applied(items: list[_Item]) -> list[_Item]:
    """Each function with its argument, which may be a number and a factor (sin 2x), as one factor."""
    done: list[_Item] = []
    for item in items:
        last = done[-1] if done else _Item()
        if last.kind == "function" and item.kind not in ("sign", "function"):
            done[-1] = _Item(last.number, f"{last.top}({_written(item)})", kind="" if item.top else "number")
        elif last.kind == "number" and item.kind == "":
            done[-1] = _Item(top=f"{last.top[:-1]}*{_written(item)})")
        else:
            done.append(item)
    return done


def _quotient(a: _Item, b: _Item) -> _Item:
    if not b.number:
        return _Item(top=f"({_written(a)})/0")
    return _Item(Fraction(a.number) / b.number, _beside(a.top, b.bottom), _beside(a.bottom, b.top))


def _beside(a: str, b: str) -> str:
    return f"{a}*{b}" if a and b[:1].isdigit() else a + b


def _power(item: _Item, mark: str, argument: str) -> _Item:
    base = _written(item)
    simple = item.kind != "fraction" and (base == item.top or base.isdigit())
    return _Item(
        top=f"{base if simple else f'({base})'}{mark}({argument})",
        kind=item.kind if item.kind in ("unit", "function") else "",
    )


def _factor(items: list[_Item]) -> _Item:
    """An element as one factor: its only term, or a sum in brackets."""
    items = _trimmed(items)
    if len(items) == 1 and items[0].kind != "sign":
        return items[0]
    terms = _terms(items)
    if len(terms) == 1 and terms[0][1] and terms[0][0] in ("", "+", "-"):
        factor = _product(terms[0][1])
        return factor._replace(number=-factor.number) if terms[0][0] == "-" else factor
    return _Item(top=f"({_show(items)})", kind="sum")


def _written(item: _Item) -> str:
    number = abs(item.number)
    shown = f"{number}*{item.top}" if item.top and number != 1 else item.top or str(number)
    return "-" * (item.number < 0) + shown + (f"/({item.bottom})" if item.bottom else "")


def _show(items: list[_Item]) -> str:
    """The form of an element."""
    items = _trimmed(items)
    if len(items) == 1 and items[0].kind == "sum":
        return items[0].top[1:-1]
    shown = ""
    for signs, term in _terms(items):
        if not term:
            return shown + signs
        factor = _product(term)
        if signs.endswith("-") and signs[-2:-1] not in ("+", "-"):
            signs, factor = signs[:-1] + "+", factor._replace(number=-factor.number)
        if signs.endswith("+") and (factor.number < 0 or len(shown + signs) == 1):
            signs = signs[:-1]
        shown += signs + _written(factor)
    return shown

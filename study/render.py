"""A report's blocks as Markdown and as one self-contained HTML page.

A block is a tuple: ("head", level, text), ("banner", text), ("text", text), ("list", lines), ("table", head, rows),
("cards", head, rows) (a table that a phone shows row by row), ("figure", name, caption), ("code", summary, lines) or
("more", summary, blocks). What is "more" folds away in the page and is left out of the Markdown. Texts hold Markdown's
bold, emphasis, code and links.
"""

import base64
import re
from html import escape

WIDE = 900  # pixels of a figure from which on a phone scrolls it, instead of making it small


def slug(text: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def quoted(text: object) -> str:
    """A word from outside as code: nothing in it is read as Markdown or HTML."""
    return "`" + re.sub(r"[`<>|\s]+", " ", str(text)).strip() + "`"


# ---------------------------------------------------------------- Markdown
def markdown(blocks: list[tuple]) -> str:
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def _markdown(block: tuple) -> str:
    match block:
        case ("head", level, text):
            return f"{'#' * level} {_plain(text)}"
        case ("banner", text):
            return f"> **{_plain(text)}**"
        case ("text", text):
            return _plain(text)
        case ("list", lines):
            return "\n".join(f"- {_plain(line)}" for line in lines)
        case ("table" | "cards", head, rows):
            return "\n".join(_row(row) for row in (head, ["---"] * len(head), *rows)) if rows else "Not run."
        case ("figure", name, caption):
            return f"![{_plain(caption)}](figures/{name}.png)"
    return ""


def _plain(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").split())


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


# ---------------------------------------------------------------- HTML
def html(title: str, blocks: list[tuple], images: dict[str, bytes]) -> str:
    """images: the PNG of each figure by name."""
    body = "\n".join(_html(block, images) for block in blocks)
    return PAGE.replace("TITLE", escape(title)).replace("BODY", body)


def _html(block: tuple, images: dict[str, bytes]) -> str:
    match block:
        case ("head", level, text):
            return f'<h{level} id="{slug(text)}">{_inline(text)}</h{level}>'
        case ("banner", text):
            return f'<p class="banner">{_inline(text)}</p>'
        case ("text", text):
            return f"<p>{_inline(text)}</p>"
        case ("list", lines):
            return "<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>"
        case ("table" | "cards" as kind, head, rows):
            return _table(kind, head, rows) if rows else "<p>Not run.</p>"
        case ("figure", name, caption):
            png = images[name]
            wide = ' class="wide"' * (int.from_bytes(png[16:20]) > WIDE)
            data = base64.b64encode(png).decode()
            image = f'<img{wide} alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{escape(caption)}.</figcaption></figure>"
        case ("code", summary, lines):
            return f"<details><summary>{escape(summary)}</summary><pre>{escape(chr(10).join(lines))}</pre></details>"
        case ("more", summary, inner):
            body = "\n".join(_html(block, images) for block in inner)
            return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"
    raise ValueError(f"no such block: {block[0]}")


def _table(kind: str, head: list[str], rows: list[list[str]]) -> str:
    """Each cell carries its column's name, which cards show on a phone."""
    top = "".join(f"<th>{_inline(name)}</th>" for name in head)
    body = [
        "".join(f'<td data-name="{escape(name)}">{_inline(cell)}</td>' for name, cell in zip(head, row, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{cells}</tr>" for cells in body)
    return f'<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _inline(s: str) -> str:
    """Bold, emphasis, code and links; a link out of the page becomes its text."""
    s = re.sub(r"\[([^]]*)\]\((#[^)]*)\)", r'<a href="\2">\1</a>', escape(s))
    s = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", s)
    s = re.sub(r"\*\*([^*]*)\*\*", r"<b>\1</b>", s)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", re.sub(r"\*([^*]+)\*", r"<i>\1</i>", s))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 66em; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.6em; line-height: 1.25; }
h2 { font-size: 1.25em; margin-top: 2.2em; border-top: 1px solid #ddd; padding-top: 0.8em; }
li { margin: 0.35em 0; }
a { color: #1a5fb4; }
img { max-width: 100%; height: auto; }
figure { margin: 1em 0; }
figcaption { font-size: 0.85em; color: #555; }
.table, .cards { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.875em; }
th, td { border-bottom: 1px solid #ddd; padding: 4px 10px 4px 0; text-align: left; vertical-align: top; }
.table td { white-space: nowrap; }
.table td:first-child { white-space: normal; min-width: 6em; }
.table code { overflow-wrap: normal; }
.cards td:nth-last-child(2), .cards td:nth-last-child(3) { white-space: nowrap; }
.banner { background: #fff3cd; border: 1px solid #e0c060; padding: 0.8em; font-weight: bold; }
details { margin: 0.5em 0; }
summary { cursor: pointer; color: #1a5fb4; }
details > *:not(summary) { margin-left: 1em; }
pre { background: #f6f6f6; padding: 8px; overflow-x: auto; font-size: 0.75em; }
code { background: #f2f2f2; padding: 0 3px; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  figure { overflow-x: auto; }
  img.wide { max-width: none; width: 680px; }
  .cards thead { display: none; }
  .cards tr { display: block; border-bottom: 2px solid #bbb; padding: 6px 0; }
  .cards td { display: block; border: 0; padding: 1px 0; }
  .cards td:empty { display: none; }
  .cards td:nth-child(2) { font-weight: 600; }
  .cards td:nth-child(n+3)::before { content: attr(data-name) ": "; color: #666; }
}
</style>
</head>
<body>
BODY
</body>
</html>
"""

"""What a compiled kernel's machine code says about its speed, before any GPU has run it.

NVIDIA code is disassembled by the `nvdisasm` of Triton's wheel; AMD's is its assembly listing. Both are read as a list
of labels and instructions. A loop is what lies between a label and a later branch back to it. Two loops count:

    the walk      the smallest loops that hold a 2^x and a matrix product: a kernel's walk over tiles of scores, one for
                  each phase of the mask. Of a kernel without such a loop (log-prob's backward) its product loop.
    the product   the shortest loop that holds a matrix product: of attention the walk without a mask, of log-prob the
                  steps along the width.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Per instruction set: a label, the kernel's end, a branch's target, matrix instructions, 2^x, and memory that stands in
# for registers.
SYNTAX = {
    "cuda": dict(
        label=r"^(\.L_x_\d+):",
        end=r"^EXIT",
        branch=r"\bBRA\b.*`\((\.L_x_\d+)\)",
        matrix=r"\b(HMMA\.\w+|HGMMA\.\w+|UTC\w*MMA)",
        exp2=r"\bMUFU\.EX2",
        spill=r"\b(?:LDL|STL)\b",
    ),
    "hip": dict(
        label=r"^(\.LBB\d+_\d+):",
        end=r"^s_endpgm",
        branch=r"\bs_c?branch\w*\s+(\.LBB\d+_\d+)",
        matrix=r"\bv_mfma_f32_(\d+x\d+x\d+)",
        exp2=r"\bv_exp_f32",
        spill=r"\bscratch_(?:load|store)",
    ),
}


@dataclass
class Code:
    """A stretch of code: instructions (of one warp), and among them matrix products by shape, 2^x and spills."""

    instructions: int
    matrix: Counter
    exp2: int
    spills: int


def disassemble(cubin: bytes) -> str:
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout


def read_lines(listing: str, backend: str) -> list[str]:
    """Labels and instructions in order, without comments and directives."""
    label, lines = SYNTAX[backend]["label"], []
    for line in listing.splitlines():
        if backend == "cuda":
            line = re.sub(r"/\*[0-9a-fx]*\*/", "", line).strip()
            keep = line.endswith(";")
        else:
            line = line.split(";")[0].strip()
            keep = re.match(r"[a-z]\w+", line)
        if keep or re.match(label, line):
            lines.append(line)
    return lines


def count(lines: list[str], backend: str) -> Code:
    syntax = SYNTAX[backend]
    body = [line for line in lines if not re.match(syntax["label"], line)]
    matrix = Counter(found.group(1) for line in body if (found := re.search(syntax["matrix"], line)))
    exp2, spills = (sum(bool(re.search(syntax[key], line)) for line in body) for key in ("exp2", "spill"))
    return Code(len(body), matrix, exp2, spills)


def find_loops(lines: list[str], backend: str) -> list[tuple[int, int]]:
    """(first line, last line) of every loop: from a label to the last branch back to it. A branch back across the
    kernel's end makes none: code that waits for a copy lies behind the end, and returns to where it was called."""
    syntax, at, spans, end = SYNTAX[backend], {}, {}, -1
    for i, line in enumerate(lines):
        if found := re.match(syntax["label"], line):
            at[found.group(1)] = i
        elif re.match(syntax["end"], line):
            end = i
        elif (found := re.search(syntax["branch"], line)) and at.get(found.group(1), -1) > end:
            spans[at[found.group(1)]] = i
    return list(spans.items())


def smallest(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]


@dataclass
class Loops:
    whole: Code
    walks: list[Code]
    product: Code | None


def analyse(listing: str, backend: str) -> Loops:
    lines = read_lines(listing, backend)
    loops = {span: count(lines[span[0] : span[1] + 1], backend) for span in find_loops(lines, backend)}
    with_product = [span for span, code in loops.items() if code.matrix]
    walks = [span for span, code in loops.items() if code.exp2 and (code.matrix or not with_product)]
    products = [loops[span] for span in smallest(with_product)] or [loops[span] for span in smallest(walks)]
    product = min(products, key=lambda code: code.instructions, default=None)
    return Loops(count(lines, backend), [loops[s] for s in smallest(walks or with_product)], product)

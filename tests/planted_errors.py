"""Plant errors in a copy of the kernels, one at a time, and report which test of the suite caught each.

    python -m tests.planted_errors

Exit 0 when every planted error was caught, 1 when one survived. The kernels run interpreted, on the CPU.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = [f"tests/kernels/test_{name}.py" for name in ("attention", "logprob", "decode")]
# (what, file, the right code, the wrong code); each right line occurs exactly once.
ERRORS = [
    (
        "attention: the left edge of the mask is dropped",
        "attention_triton.py",
        "begun = n >= first",
        "begun = n >= 0",
    ),
    (
        "attention: a row of NaN counts as one that sees nothing",
        "attention_triton.py",
        "sees = (first <= offs_m) | (shared > 0)  #",
        "sees = l_i > 0  #",
    ),
    (
        "attention: the block that the edge of the shared prompt cuts is left out",
        "attention_triton.py",
        "edge = tl.minimum(tl.cdiv(shared, BLOCK_N) * BLOCK_N, lo)",
        "edge = whole",
    ),
    (
        "attention: dk without its scale",
        "attention_triton.py",
        "_store_rows(dk_ptr + out, dk * scale,",
        "_store_rows(dk_ptr + out, dk,",
    ),
    (
        "attention: dq without the delta term",
        "attention_triton.py",
        "ds = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])",
        "ds = p * tl.dot(g, tl.trans(v), input_precision=PRECISION)",
    ),
    (
        "log-prob: the sum is not rescaled when the maximum grows",
        "logprob.py",
        "l_i = scale * l_i + tl.sum(e, 1)",
        "l_i = l_i + tl.sum(e, 1)",
    ),
    (
        "log-prob: the last group of row blocks is taken for a full one",
        "logprob.py",
        "height = tl.minimum(rows - start, GROUP)",
        "height = GROUP",
    ),
    (
        "decoding: slots past the end of a tail are read",
        "decode.py",
        'tl.where(valid, tl.sum(k * q[None, :], 1), float("-inf"))',
        "tl.sum(k * q[None, :], 1)",
    ),
]


def caught_by(path: Path, right: str, wrong: str) -> str | None:
    """The first test that fails with `wrong` in place of `right`, or None."""
    source = path.read_text()
    if source.count(right) != 1:
        raise SystemExit(
            f"{path.name}: `{right}` occurs {source.count(right)} times, needs 1; mend tests/planted_errors.py"
        )
    path.write_text(source.replace(right, wrong))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "KERNELS_IMPL": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", *SUITE]
    done = subprocess.run(command, cwd=path.parent.parent, env=environment, capture_output=True, text=True)
    path.write_text(source)
    if done.returncode > 1:
        raise SystemExit(f"the suite does not run: {done.stdout[-500:]}{done.stderr[-500:]}")
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return failed.group(1) if failed else None


def main() -> None:
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("kernels", "tests/kernels"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for what, file, right, wrong in ERRORS:
            test = caught_by(Path(folder) / "kernels" / file, right, wrong)
            survived += test is None
            print(f"{what}: " + (f"caught by {test}" if test else "NOT CAUGHT"), flush=True)
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()

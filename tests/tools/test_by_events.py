"""pass@k by number of events, by hand.   pytest -q tests/tools/test_by_events.py"""

import json

import pytest

from common import UserError
from tools import by_events


def test_two_lengths_by_hand(tmp_path, monkeypatch, capsys):
    chains = {"A?": "gsm 3.1 +2.0 *2.2", "B?": "gsm 4.1 +2.0 *2.2", "C?": "gsm 4.1 +2.0 *2.2 -1.0"}
    rows = [{"problem": p, "chain": c, "problem_source": "gsm"} for p, c in chains.items() for _ in range(2)]
    rows.insert(0, {"problem": "H?", "chain": "hard 1.1 r+2.0", "problem_source": "hard"})
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"qid": ["gsm/0", "gsm/1", "gsm/2"], "n": [4, 4, 4], "flexible": [4, 1, 2]}
    found = {
        "settings": {"data": str(tmp_path), "split": "val", "k": [1, 2]},
        "questions": {"gsm": {"questions": counts}},
    }
    path = tmp_path / "e.json"
    path.write_text(json.dumps(found))
    ks, table = by_events.by_events(path, "gsm", None)
    assert ks == [1, 2] and {n: row[0] for n, row in table.items()} == {2: 2, 3: 1}
    assert table[2][1]["value"] == pytest.approx((1 + 1 / 4) / 2) and table[2][2]["value"] == pytest.approx(0.75)
    assert table[3][2]["value"] == pytest.approx(1 - 1 / 6)
    monkeypatch.setattr("sys.argv", ["by_events", str(path)])
    by_events.main()
    assert "62.5 ± 37.5" in capsys.readouterr().out
    with pytest.raises(UserError, match="no task 'hard'"):
        by_events.by_events(path, "hard", None)
    (tmp_path / "val.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match="gsm/1 is not in the data folder"):
        by_events.by_events(path, "gsm", None)

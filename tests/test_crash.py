"""Ten kills and ten flipped bits over all stages; more: python tests/crash.py.   pytest -q tests/test_crash.py"""

import crash


def test_killed_runs_resume_bit_for_bit_and_flipped_bits_are_refused(tmp_path):
    assert crash.main(kills=10, flips=10, seed=1, folder=tmp_path)

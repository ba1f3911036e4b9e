"""The settings of a comparison: command lines that the stages' own parsers read.

pytest -q tests/study/test_settings.py"""

from pathlib import Path

import pytest

from common import UserError
from study.settings import HERE, read_setting, with_baselines
from study.tasks import words

OWN = {"init": "/x/ckpt_000003.pt", "data": str(HERE), "out": "/x/out", "seed": 1, "task": "gsm"}


def setting(text: str, start: Path = HERE):
    return read_setting(text, OWN, start)


@pytest.fixture
def fork(tmp_path):
    """A copy of train_rl.py elsewhere, with a flag of its own and an import from its folder."""
    (tmp_path / "my_part.py").write_text("DEFAULT = 0.5\n")
    text = (HERE / "train_rl.py").read_text()
    text = text.replace("import argparse\n", "import argparse\nfrom my_part import DEFAULT\n", 1)
    text = text.replace(
        "    add_rl_args(p)\n", '    add_rl_args(p)\n    p.add_argument("--mine", type=float, default=DEFAULT)\n'
    )
    (tmp_path / "my_train_rl.py").write_text(text)
    return tmp_path / "my_train_rl.py"


def test_a_setting_is_what_differs_from_the_defaults():
    found = setting('none="x"'.replace('"x"', "train_rl.py --adv-norm none --lr 1e-4 --betas 0.9 0.95"))
    assert (found.name, found.script, found.stage, found.steps) == ("none", "train_rl.py", "train_rl.py", 48)
    assert found.flags == {"adv_norm": "none", "betas": [0.9, 0.95]}  # 1e-4 is the default
    assert setting("p=train_sft.py --preset paper").steps == 9500
    paper = setting("p=train_rl.py --preset paper --lr 1e-4").flags  # the laptop's rate, not the paper's
    assert "lr" not in paper and "preset" not in paper and (paper["steps"], paper["kl_coef"]) == (1560, 1e-3)
    assert setting("rare=merge.py --sync-every 8").stage == "merge.py"


def test_a_flag_that_is_switched_off_is_named_so():
    assert words({"document_mask": False, "gold": True, "k": [1, 8]}) == "--no-document-mask --gold --k 1 8".split()


def test_a_fork_works_in_place_of_the_stage(fork):
    found = setting("mine=my_train_rl.py --mine 0.25 --lr 2e-4", fork.parent)
    assert (found.script, found.stage) == (str(fork), "train_rl.py")
    assert found.flags == {"mine": 0.25, "lr": 2e-4}
    assert not setting(f"same={fork}").is_stage  # the stage as it stands is the baseline, a fork is not


@pytest.mark.parametrize(
    "text, message",
    [
        ("train_rl.py --adv-norm none", 'give NAME="STAGE.py --flag value"'),
        ("a=", 'give NAME="STAGE.py'),
        ("a/b=train_rl.py", "NAME of letters"),
        ("a=train_rl.py --lr '1", "a: No closing quotation"),
        ("a=train_ppo.py", "a: train_ppo.py: no such file; name train_rl.py"),
        ("a=train_rl.py --adv-nrm none", "a: train_rl.py: unrecognized arguments: --adv-nrm none"),
        ("a=train_rl.py --adv-norm nono", "a: train_rl.py: argument --adv-norm: invalid choice"),
        ("a=train_rl.py --lr fast", "a: train_rl.py: argument --lr: invalid float"),
        ("a=train_rl.py --group-size 1", "a: --group-size 1: a group needs 2"),
        ("a=merge.py --sync-every 5", "a: --sync-every 5 must divide"),
        ("a=train_rl.py --seed 3", "a: --seed cannot be part of a setting"),
        ("a=train_rl.py --init other.pt", "a: --init cannot be part"),
        ("a=train_rl.py --task hard", "a: --task cannot be part"),
        ("a=train_rl.py --help", "a: train_rl.py: these flags run nothing"),
        ("a=train_sft.py --epochs 2", "a: give --steps instead of --epochs"),
        ("a=evaluate.py --limit 3", "a: evaluate.py: unrecognized arguments|a: evaluate.py: the following"),
    ],
)
def test_a_typo_is_refused_in_a_sentence(text, message):
    with pytest.raises(UserError, match=message):
        setting(text)


def test_a_fork_that_cannot_run_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def parser(:\n")
    (tmp_path / "bare.py").write_text("def parser():\n    pass\n")
    with pytest.raises(UserError, match="a: .*broken.py cannot be loaded .SyntaxError"):
        setting("a=broken.py", tmp_path)
    with pytest.raises(UserError, match="a: .*bare.py has no parse_args"):
        setting("a=bare.py", tmp_path)


def test_each_stage_gets_its_baseline_unless_one_is_named():
    none, rare = setting("none=train_rl.py --adv-norm none"), setting("rare=merge.py --sync-every 8")
    settings, base_of = with_baselines([none], OWN)
    assert [s.name for s in settings] == ["baseline", "none"] and base_of == {"none": "baseline"}
    assert (settings[0].script, settings[0].flags, settings[0].steps) == ("train_rl.py", {}, 48)
    settings, base_of = with_baselines([none, rare], OWN)
    assert [s.name for s in settings] == ["baseline-rl", "baseline-merge", "none", "rare"]
    assert base_of == {"none": "baseline-rl", "rare": "baseline-merge"}
    plain = setting("plain=train_rl.py")  # is the stage at its defaults
    settings, base_of = with_baselines([none, plain], OWN)
    assert [s.name for s in settings] == ["none", "plain"] and base_of == {"none": "plain"}
    named = setting("baseline=train_rl.py --lr 3e-4")
    settings, base_of = with_baselines([none, named, rare], OWN)
    assert len(settings) == 3 and base_of == {"none": "baseline", "rare": "baseline"}
    with pytest.raises(UserError, match="two settings are called none"):
        with_baselines([none, none], OWN)

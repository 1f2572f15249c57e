"""DPO in a pack beside TRL: losses are held against TRL's before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.preference_rate import ARMS, SAME, main

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and of what it calls


def test_losses_are_trls_and_both_are_timed(
    document: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    found = document(main, ["--quick", "--slots", "2"])
    assert found["largest_difference_to_trl"] < SAME
    assert set(found["times"]) == set(ARMS)
    assert found["times"]["TRL"] == 1.0
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found["seconds_per_trial_step"].values())
    assert "once for a study" in capsys.readouterr().out


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--quick", "--arms", "TRL,ours"])
    assert "--arms: 'ours' is not known" in capsys.readouterr().err

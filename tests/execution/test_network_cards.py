"""Which network card the processes of a group talk over."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from automl.execution.ray_group import card_of
from tests.faults.network import Network, missing
from tests.fresh import ROOT


def test_the_card_is_the_one_with_the_address() -> None:
    assert socket.if_nametoindex(card_of("127.0.0.1"))
    assert card_of("192.0.2.1") == "", "an address of documentation (RFC 5737), which nobody has"


WHY_NOT = missing()
_TOLD = "import sys; from automl.execution.ray_group import card_of; print(card_of(sys.argv[1]))"


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_machine_talks_over_its_own_card_and_not_over_loopback() -> None:
    with Network() as network:
        machine = network.add()
        command = [*machine.inside, sys.executable, "-c", _TOLD, machine.address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "card"

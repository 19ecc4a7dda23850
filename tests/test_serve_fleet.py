"""Weights that change on several servers together (`regraft.serve`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import Cli
from exporting import ROOT, load_arrays, save_arrays

pytest.importorskip("regraft")

from regraft.serve import Client, FleetError, ServerError, publish_everywhere

FIXTURES = ROOT / "crates/conformance/fixtures"


class Fleet:
    """Servers of one engine, each in a process of its own."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.engine = cli.compile(FIXTURES / "linear.pt2")
        self.servers: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> str:
        command = [str(self.cli.binary), "serve", f"m={self.engine}", "--address", "127.0.0.1:0", "--json"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = str(json.loads(server.stdout.readline())["listening"])
        self.servers[address] = server
        return address

    def kill(self, address: str) -> None:
        self.servers[address].kill()
        self.servers.pop(address).wait(timeout=60)

    def weights(self, mark: float) -> Path:
        tensors = load_arrays(FIXTURES / "linear.safetensors")
        arrays = {name[2:]: array.copy() for name, array in tensors.items() if name.startswith("b/")}
        arrays["bias"][0] = mark
        return save_arrays(self.cli.path("w", ".safetensors"), arrays)

    def serving(self, address: str) -> str:
        return str(Client(address).status("m")["serving"]["digest"])


@pytest.fixture
def fleet(cli: Cli) -> Iterator[Fleet]:
    fleet = Fleet(cli)
    yield fleet
    for address in list(fleet.servers):
        fleet.kill(address)


def test_all_or_none(fleet: Fleet) -> None:
    servers = [fleet.start() for _ in range(3)]
    first = publish_everywhere(servers, "m", fleet.weights(1.0))
    assert first.published == servers and not first.lost
    assert {fleet.serving(server) for server in servers} == {first.digest}

    # One that cannot stage ends it for all, and nothing stays staged.
    wrong = save_arrays(fleet.cli.path("wrong", ".safetensors"), {"none": np.zeros(3, np.float32)})
    with pytest.raises(FleetError, match="3 of 3 servers") as failure:
        publish_everywhere(servers, "m", wrong)
    assert all(len(error.problems) > 1 for error in failure.value.errors.values())
    fleet.kill(servers[1])
    with pytest.raises(FleetError, match="1 of 3 servers could not stage") as failure:
        publish_everywhere(servers, "m", fleet.weights(2.0))
    assert list(failure.value.errors) == [servers[1]]
    for server in (servers[0], servers[2]):
        assert fleet.serving(server) == first.digest
        assert Client(server).status("m")["staged"] is None

    # Without the lost one, and with one that joins late.
    late = fleet.start()
    alive = [servers[0], servers[2], late]
    second = publish_everywhere(alive, "m", fleet.weights(2.0))
    assert {fleet.serving(server) for server in alive} == {second.digest} != {first.digest}
    assert publish_everywhere(alive, "m", fleet.weights(2.0)).digest == second.digest


def test_servers_that_would_differ_are_left_alone(fleet: Fleet) -> None:
    one, other = fleet.start(), fleet.start()
    publish_everywhere([one], "m", fleet.weights(1.0))
    part = save_arrays(fleet.cli.path("part", ".safetensors"), {"bias": np.zeros(7, np.float32)})
    before = [fleet.serving(one), fleet.serving(other)]
    with pytest.raises(FleetError, match="would serve different weights"):
        publish_everywhere([one, other], "m", part, partial=True)
    assert [fleet.serving(one), fleet.serving(other)] == before


def test_errors_of_one_server(fleet: Fleet) -> None:
    client = Client(fleet.start())
    with pytest.raises(ServerError, match="nothing is staged") as error:
        client.publish("m")
    assert error.value.status == 409
    with pytest.raises(ServerError, match="no model `none`"):
        client.status("none")
    with pytest.raises(ServerError, match="no answer") as error:
        Client("127.0.0.1:1", timeout=5).status("m")
    assert error.value.status is None
    with pytest.raises(ValueError, match="is not a server"):
        Client("ftp://x")

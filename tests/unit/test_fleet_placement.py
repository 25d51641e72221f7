"""Placement of services on cores and GPUs, and of clients on services."""

from __future__ import annotations

import re

import pytest

from robowire.address import is_loopback
from robowire.errors import ConfigurationError
from robowire.fleet.options import FleetOptions
from robowire.fleet.placement import ARRIVAL_S, Load, least_loaded, least_used, to_remove
from robowire.fleet.table import table


def test_services_take_gpus_in_turn() -> None:
    given: list[str] = []
    for _ in range(5):
        given += least_used(("0", "1"), given, 1)
    assert given == ["0", "1", "0", "1", "0"]


def test_the_gpu_of_a_service_that_ended_is_the_next() -> None:
    assert least_used(("0", "1"), ["0", "0", "1"], 1) == ("1",)


def test_cores_are_distributed() -> None:
    used: list[int] = []
    for _ in range(2):
        used += least_used(range(8), used, 4)
    assert used == [0, 1, 2, 3, 4, 5, 6, 7]


def test_no_more_resources_are_used_than_there_are() -> None:
    assert least_used((), [], 1) == ()
    assert least_used((0, 1), [], 5) == (0, 1)


def test_a_client_goes_where_the_smallest_part_is_in_use() -> None:
    loads = [Load(sessions=2, max_sessions=4), Load(sessions=3, max_sessions=8), Load(1, 2)]
    assert least_loaded(loads, 0.0) == 1


def test_there_may_be_no_service() -> None:
    assert least_loaded([], 0.0) is None


def test_clients_that_come_at_once_are_spread_before_anybody_looks_again() -> None:
    loads, chosen = [Load(max_sessions=4) for _ in range(3)], []
    for _ in range(6):
        index = least_loaded(loads, 0.0)
        assert index is not None
        loads[index].send(0.0)
        chosen.append(index)
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_a_client_that_has_arrived_counts_once() -> None:
    load = Load(max_sessions=4)
    load.send(0.0)
    load.see(1, 4)
    assert load.count(0.1) == 1


def test_a_client_that_was_seen_and_left_is_not_waited_for() -> None:
    load = Load(max_sessions=4)
    load.send(0.0)
    load.see(1, 4)
    load.see(0, 4)
    assert load.count(0.1) == 0


def test_a_client_that_never_arrived_is_forgotten() -> None:
    load = Load(max_sessions=4)
    load.send(0.0)
    assert (load.count(ARRIVAL_S - 0.1), load.count(ARRIVAL_S)) == (1, 0)


def test_services_that_do_not_serve_are_removed_first_then_the_emptiest_then_the_newest() -> None:
    loads = [Load(sessions=2), Load(sessions=0), Load(sessions=5), Load(sessions=0)]
    assert to_remove([True, True, False, True], loads, 3, 0.0) == [2, 3, 1]


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("[::ffff:127.0.0.1]:5000", True),
        ("10.0.0.1:5000", False),
        ("[fe80::1%eth0]:5000", False),
    ],
)
def test_addresses_of_this_machine(peer: str, local: bool) -> None:
    assert is_loopback(peer) is local


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_services": -1}, "num_services is -1, expected 0 to 1024"),
        ({"engine": "rya"}, "no engine is called 'rya'. Did you mean 'ray'? Known: local, ray"),
        ({"gpus": ("0", "cuda:1")}, "gpus names 'cuda:1', expected numbers, such as 0,1"),
        ({"cores_per_service": -1}, "cores_per_service is -1, expected 0 or more"),
        ({"first_service_port": 70000}, "first_service_port is 70000, expected 0 to 65535"),
        ({"health_interval_s": 0}, "health_interval_s is 0, expected a number of seconds above 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        FleetOptions(**options)  # type: ignore[arg-type]


def test_the_table_lists_the_services() -> None:
    rows = [
        {
            "service": "1.1",
            "address": "127.0.0.1:4001",
            "state": "healthy",
            "reason": "",
            "sessions": 2,
            "max_sessions": 8,
            "memory_mb": 812,
            "restarts": 0,
            "gpu": "0",
            "cores": "0,1",
        },
        {
            "service": "2.3",
            "address": "",
            "state": "backing off",
            "reason": "was killed by SIGSEGV",
            "sessions": 0,
            "max_sessions": 0,
            "memory_mb": 0,
            "restarts": 3,
            "gpu": "",
            "cores": "",
        },
    ]
    assert table(rows) == (
        "service  address         state        sessions  memory  restarts  gpu  cores\n"
        "1.1      127.0.0.1:4001  healthy      2/8       812 MB  0         0    0,1\n"
        "2.3      -               backing off  -         -       3         -    all  was killed by SIGSEGV"
    )


def test_the_table_of_no_services() -> None:
    assert table([]) == "no services"

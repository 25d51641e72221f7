from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.address import is_loopback, join_address, parse_address, split_address, unix_path
from robowire.errors import ConfigurationError

HOSTS = st.from_regex(r"[a-z0-9.-]{1,20}|[0-9a-f]{1,4}:(:[0-9a-f]{1,4}){1,4}", fullmatch=True)


def test_the_path_of_a_unix_socket_stands_in_the_place_of_a_host() -> None:
    assert split_address("unix:/run/robo wire.sock") == ("unix:/run/robo wire.sock", 0)
    assert join_address("unix:/run/a.sock", 5000) == "unix:/run/a.sock"
    assert unix_path("unix:/run/a.sock") == "/run/a.sock"
    assert is_loopback("unix:/run/a.sock")
    assert split_address("unix:5000") == ("unix", 5000)
    assert unix_path("unix:5000") is None
    assert not is_loopback("unix:5000")


@given(host=HOSTS, port=st.integers(1, 65535))
def test_what_is_joined_can_be_split(host: str, port: int) -> None:
    assert split_address(join_address(host, port)) == (host, port)


def test_a_default_port_stands_in_for_one_that_is_left_out() -> None:
    assert split_address("robot", default_port=5000) == ("robot", 5000)
    assert split_address("[::1]", default_port=5000) == ("::1", 5000)
    assert split_address("robot:7", default_port=5000) == ("robot", 7)


@pytest.mark.parametrize(
    "text", ["", "robot", "robot:", ":5000", "robot:0", "robot:65536", "a:b", "::1:5000", "a b:1"]
)
def test_what_is_no_address_is_refused_with_the_name_of_the_option(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address("address", text, example="localhost:5000")
    assert str(caught.value) == f"address is {text!r}, expected host:port, such as localhost:5000"

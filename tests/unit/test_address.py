from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.address import join_address, parse_address, split_address
from robowire.errors import ConfigurationError

HOSTS = st.from_regex(r"[a-z0-9.-]{1,20}|[0-9a-f]{1,4}:(:[0-9a-f]{1,4}){1,4}", fullmatch=True)


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

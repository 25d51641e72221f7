"""Base64 by pybase64 and by the standard library: both are read alike."""

from __future__ import annotations

import base64

import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.frontends import base64_text
from robowire.frontends.base64_text import from_base64, to_base64

NOT_BASE64 = ("a", "ab=c", "ab==ab==", "a\nbc=", "\u00e9===", "ab c", "ab", "====", "ab-_")


def test_the_quick_library_is_used_where_it_is_installed() -> None:
    assert base64_text.base64 is pybase64


@given(st.binary(max_size=200))
def test_bytes_come_back(data: bytes) -> None:
    assert to_base64(data) == base64.b64encode(data).decode()
    assert from_base64(to_base64(data)) == data


@pytest.mark.parametrize("text", NOT_BASE64)
def test_what_is_not_base64_is_an_error_of_both_libraries(text: str) -> None:
    for read in (from_base64, lambda text: base64.b64decode(text, validate=True)):
        with pytest.raises(ValueError, match=r"."):
            read(text)


@given(st.text(alphabet="AZaz09+/=-_ \n", max_size=12))
def test_what_one_library_accepts_the_other_reads_alike(text: str) -> None:
    try:
        data = from_base64(text)
    except ValueError:  # the standard library takes superfluous padding
        return
    assert data == base64.b64decode(text, validate=True)

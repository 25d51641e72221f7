"""What each request means, and what is said about one that means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from robowire.errors import InternalError, InvalidParams, RequestError, TaskNotFound, UnknownMethod
from robowire.meta import MetaObs
from robowire.wire.messages import (
    Request,
    error_reply,
    ok,
    parse_call,
    raise_for_status,
)


def test_the_simulator_port_takes_calls_only() -> None:
    assert parse_call({"method": "reset", "seed": 1}) == Request("reset", {"seed": 1})
    with pytest.raises(InvalidParams, match=r"^a request is a dict with a 'method', not a MetaObs$"):
        parse_call(MetaObs())


def test_an_error_crosses_the_wire_as_itself() -> None:
    reply = error_reply(TaskNotFound("no task is called 'Lfit'"))
    assert reply == {"status": "error", "error_type": "task_not_found", "message": "no task is called 'Lfit'"}
    with pytest.raises(TaskNotFound, match=r"^no task is called 'Lfit'$"):
        raise_for_status(reply)


def test_an_error_type_of_a_newer_server_is_kept() -> None:
    with pytest.raises(RequestError, match=r"^too hot$") as raised:
        raise_for_status({"status": "error", "error_type": "overheated", "message": "too hot"})
    assert (type(raised.value), raised.value.error_type) == (RequestError, "overheated")


@pytest.mark.parametrize("reply", [ok(session=1), {"status": "OK"}])
def test_a_reply_that_says_ok_is_returned(reply: dict[str, Any]) -> None:
    assert raise_for_status(reply) is reply


@pytest.mark.parametrize(("reply", "what"), [([], "a list"), ({"state": 1}, "a dict")])
def test_a_reply_without_a_status_is_the_servers_bug(reply: Any, what: str) -> None:
    with pytest.raises(InternalError) as raised:
        raise_for_status(reply)
    assert str(raised.value) == f"the reply is {what}, not a dict with a 'status'"


def test_the_error_of_an_old_dialect_is_raised() -> None:
    with pytest.raises(InternalError, match=r"^out of memory$"):
        raise_for_status({"status": "ERROR", "message": "out of memory"})


def test_every_error_type_is_its_class() -> None:
    assert isinstance(raise_and_catch(UnknownMethod("x")), UnknownMethod)


def raise_and_catch(error: RequestError) -> RequestError:
    with pytest.raises(RequestError) as raised:
        raise_for_status(error_reply(error))
    return raised.value

"""Who may see the page: holders of the token, pages of this site only, and nothing from outside is loaded."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robowire.errors import Unauthenticated
from robowire.frontends.authorization import offered_token
from robowire.frontends.http_limits import is_of_another_site, is_own_host
from robowire.serving.token_guard import TokenGuard
from robowire.wire.auth import check_token

__all__ = ["ViewerGuard"]

# The browser itself refuses every request to another host, whatever a library of the page would like to load.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'"
)


class ViewerGuard:
    """Answers viewers that may look, and refuses others.

    The token is the password that a browser asks for (HTTP Basic), with any user name.

    Args:
        app: The page.
        token: Token of viewers; ``None`` for none.
        allowed_hosts: Names of the page, in addition to addresses.
    """

    def __init__(self, app: ASGIApp, token: str | None, allowed_hosts: tuple[str, ...]) -> None:
        self._app = app
        self._token = token
        self._allowed_hosts = allowed_hosts
        self._guesses = TokenGuard()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_guarded)

    async def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        # A link on another page may lead here, which shows nothing to that page.
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if is_of_another_site(headers) and not navigates:
            return PlainTextResponse("pages of another site may not ask this dashboard\n", 403)
        if self._token is None:
            if not is_own_host(headers.get("host", ""), self._allowed_hosts):
                return PlainTextResponse(
                    "this dashboard is addressed by an unknown name: use its IP address or localhost, or "
                    "start it with --dashboard_allowed_hosts NAME\n",
                    403,
                )
            return None
        host = str((scope.get("client") or ("", 0))[0])
        await asyncio.sleep(self._guesses.delay_s(host))
        token = offered_token(headers.get("authorization", ""), "basic", "bearer")
        try:
            check_token(token, self._token)
        except Unauthenticated:
            if token is not None:
                self._guesses.failed(host)
            return PlainTextResponse(
                "this dashboard wants the server's token, as the password with any user name\n",
                401,
                {"WWW-Authenticate": 'Basic realm="robowire", charset="UTF-8"'},
            )
        self._guesses.succeeded(host)
        return None

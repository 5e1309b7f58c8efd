"""Who may be asked for: an app on this machine answers under this machine's names alone.

A page of somebody else could otherwise let its own name point to 127.0.0.1 and read what the app answers (DNS
rebinding), for to the browser both are then one site.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

HOSTS_VARIABLE = "OPD_ALLOWED_HOSTS"
"""The environment variable of further names, with commas between them: a proxy's, for one."""

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


class OwnNames:
    """Middleware that answers no request for a name that is not its own; ASGI."""

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]], *, address: str) -> None:
        """Put it before ``app``, which listens on ``address``."""
        self.app = app
        further = os.environ.get(HOSTS_VARIABLE, "").split(",")
        self.names = {address.lower(), "localhost", *filter(None, (name.strip().lower() for name in further))}

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """Pass a request on, or refuse it in a sentence."""
        asked = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if scope["type"] != "http" or self._is_own(asked):
            await self.app(scope, receive, send)
            return
        text = (
            f"This app answers under {', '.join(sorted(self.names))} alone. To reach it under another name, "
            f"as behind a proxy, start it with that name in {HOSTS_VARIABLE}.\n"
        )
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _is_own(self, asked: str) -> bool:
        try:
            name = urlsplit(f"//{asked}").hostname or ""
        except ValueError:
            return False
        return name in self.names or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether an address or name is this machine's own, which nobody else can reach."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"

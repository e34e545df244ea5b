"""The server under a path of a reverse proxy's, whether that takes the path off or leaves it on."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RootPath:
    """Takes ``root``, as in /trivium, off the paths that come with it, and puts it before those of redirections."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == self._root or scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root) or "/"}
            raw: bytes = scope.get("raw_path") or b""
            scope["raw_path"] = raw.removeprefix(self._root.encode()) or b"/"
        here = f"{scope['scheme']}://{Headers(scope=scope).get('host', '')}"

        async def send_with_root(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The router's own, of a path with a slash too many; a route's own address has the path already.
                if (place := headers.get("location", "")).startswith(f"{here}/"):
                    headers["location"] = self._root + place.removeprefix(here)
            await send(message)

        await self._app(scope, receive, send_with_root)

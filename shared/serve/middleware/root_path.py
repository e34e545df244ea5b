"""Serves under a path of a reverse proxy, whether the proxy strips the path or not."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RootPath:
    """Strips ``root``, such as /trivium, from request paths that have it, and adds it to redirects of the router."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == self._root or scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root) or "/"}
            raw: bytes = scope.get("raw_path") or b""
            scope["raw_path"] = raw.removeprefix(self._root.encode()) or b"/"
        server_url = f"{scope['scheme']}://{Headers(scope=scope).get('host', '')}"

        async def send_with_root(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The router redirects to absolute URLs if a path has a superfluous slash. The routes' own redirects
                # already have the root path.
                if (location := headers.get("location", "")).startswith(f"{server_url}/"):
                    headers["location"] = self._root + location.removeprefix(server_url)
            await send(message)

        await self._app(scope, receive, send_with_root)

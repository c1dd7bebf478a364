"""uvicorn, extended: it answers running requests while it shuts down, and closes connections on which nothing happens.

    with HttpServer(app, app.limits, "127.0.0.1", 8000) as server:
        ...  # serves meanwhile, in a thread

On shutdown, running requests are answered and new ones refused; uvicorn by itself would close its socket first.
"""

import asyncio
import socket
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp

# Not in uvicorn's reference; `cycle` and `transport` are those of 0.30 to 0.54. It has no option for how long a client
# can take to send the head of a request, or leave an answer unread.
from uvicorn.protocols.http.h11_impl import H11Protocol

from .request_limits import IDLE, RequestLimits


FLUSH = 5  # seconds on shutdown, for answers on their way and bodies that have not arrived


class Connection(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_again(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look_again(self, seen: Any) -> None:
        self._next_look = self.loop.call_later(IDLE, self._look, seen)

    def _look(self, before: Any) -> None:
        """Cuts the connection if no request has come, and nothing of the last answer was sent, since the last look."""
        waits = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        now = (self.cycle, waits, self.transport.is_closing(), self.transport.get_write_buffer_size())
        if waits and now == before:
            self.transport.abort()
        else:
            self._look_again(now)


class HttpServer(uvicorn.Server):
    """
    Serves inside its `with` block, at `url`.

    Args:
        app: the ASGI application.
        limits: of its requests.
        host, port: to listen on; port 0 takes a free one.

    Raises an `OSError` if the address is not available.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, host: str, port: int):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        try:
            self._socket = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise OSError(f"{host}:{port} is not available ({error.strerror}); see --port.") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        self._limits = limits
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            proxy_headers=False,  # they would be trusted
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=FLUSH,
        )
        super().__init__(config)

    def __enter__(self) -> "HttpServer":
        self._thread = threading.Thread(target=self.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.should_exit = True
        self._thread.join()

    @property
    def is_serving(self) -> bool:
        return self._thread.is_alive()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers running requests; meanwhile new ones are refused."""
        self._limits.draining = True
        while self._limits.running:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


__all__ = ["HttpServer"]

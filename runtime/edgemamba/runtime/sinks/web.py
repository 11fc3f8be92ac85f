"""The live web page, and the metrics endpoint alone."""

from __future__ import annotations

import logging
from abc import abstractmethod

from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.report import StreamReport
from edgemamba.runtime.results import Result
from edgemamba.runtime.sinks.base import Sink
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.web.address import parse_address
from edgemamba.runtime.web.app import build_app
from edgemamba.runtime.web.live import LiveView
from edgemamba.runtime.web.metrics import StreamMetrics
from edgemamba.runtime.web.server import WebServer

LOGGER = logging.getLogger("edgemamba.runtime")


class _ServedSink(Sink):
    """A sink that listens on an address.

    Args:
        address: ``[HOST:]PORT``; without a host the loopback.
        token: what visitors must know. None: nothing on the loopback, else a random one, which :attr:`url` holds.
    """

    scheme: str

    def __init__(self, address: str = "8080", token: str | None = None) -> None:
        self._address = parse_address(address)
        self._token = token
        self._server: WebServer | None = None
        self._report: StreamReport | None = None
        self._engine: Engine | None = None
        self._metrics: StreamMetrics | None = None
        self.url_elsewhere: str | None = None
        self.url = self._address.url  # from `open` on with the token, and the port where any was asked for

    def attach(self, report: StreamReport, engine: Engine) -> None:
        self._report, self._engine = report, engine

    def open(self, source: Source) -> None:
        for module in ("fastapi", "uvicorn"):
            require(module, purpose=f"{self.scheme}://")
        if self._report is None or self._engine is None:
            raise SinkError(f"{self.scheme}:// shows a stream; give it to edgemamba.runtime.stream(..., sinks=[...])")
        self._server = WebServer(self._address, self._token)
        self.url, self.url_elsewhere = self._server.url, self._server.url_elsewhere
        self._serve(self._server, self._report, self._engine)

    @abstractmethod
    def _serve(self, server: WebServer, report: StreamReport, engine: Engine) -> None:
        """Start the server with this sink's pages."""

    def write(self, result: Result) -> None:
        if self._metrics is not None:
            self._metrics.count(result)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()


class WebSink(_ServedSink):
    """The live page: the current frame with its classes, plots of latency and drops, the stages' times, the parity report; and
    ``/metrics`` where prometheus_client is installed.

    No client slows the stream: a result is kept by reference, and becomes a picture only when a page asks.

    Args:
        address: ``[HOST:]PORT``; without a host the loopback.
        token: what visitors must know. None: nothing on the loopback, else a random one, which :attr:`url` holds.
        include_phi: show the source's name as it is; see :mod:`edgemamba.runtime.privacy`.
    """

    scheme = "web"

    def __init__(self, address: str = "8080", token: str | None = None, include_phi: bool = False) -> None:
        super().__init__(address, token)
        self._include_phi = include_phi
        self._view: LiveView | None = None

    def _serve(self, server: WebServer, report: StreamReport, engine: Engine) -> None:
        self._view = LiveView(report, engine, self._include_phi)
        try:
            self._metrics = StreamMetrics(report, engine)
        except ImportError:
            LOGGER.info("prometheus_client is not installed: the page has no /metrics")
        server.start(build_app(self._view, self._metrics))

    def write(self, result: Result) -> None:
        super().write(result)
        if self._view is not None:
            self._view.show(result)

    def close(self) -> None:
        if self._view is not None:
            self._view.ended = True
        super().close()

    def describe(self) -> str:
        return f"live page at {self.url.partition('?')[0]}"


class MetricsSink(_ServedSink):
    """``/metrics`` for Prometheus, without the page.

    Args:
        address: ``[HOST:]PORT``; without a host the loopback.
        token: what Prometheus must send as a bearer token. None: nothing on the loopback, else a random one.
    """

    scheme = "metrics"

    def _serve(self, server: WebServer, report: StreamReport, engine: Engine) -> None:
        self._metrics = StreamMetrics(report, engine)
        server.start(build_app(None, self._metrics))

    def describe(self) -> str:
        return f"metrics at {self.url.partition('?')[0]}metrics"

"""The server's pages."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from edgemamba.runtime.extras import require
from edgemamba.runtime.web.access import App
from edgemamba.runtime.web.live import SAMPLE_SECONDS, LiveView
from edgemamba.runtime.web.metrics import StreamMetrics

__all__ = ["build_app"]

_PAGE = Path(__file__).with_name("page.html")
# How long a request for the next frame is kept waiting, and how often it looks up.
_LONGEST_WAIT = 10.0
_TICK = 0.02


def build_app(view: LiveView | None, metrics: StreamMetrics | None) -> App:
    """An ASGI application.

    Args:
        view: shown at ``/``, with ``/frame.jpg`` and ``/state.json``; None: no page.
        metrics: given at ``/metrics``; None: no metrics.
    """
    fastapi = require("fastapi", purpose="the web page")
    responses = require("fastapi.responses", purpose="the web page")

    # One thread: pictures are made one after the other, whatever the number of clients.
    encoder = ThreadPoolExecutor(1, thread_name_prefix="edgemamba-web-picture")

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(_sample(view)) if view is not None else None
        yield
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        encoder.shutdown(wait=False, cancel_futures=True)

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    if view is not None:
        _add_page(app, responses, view, encoder)
    if metrics is not None:
        _add_metrics(app, responses, metrics)
    served: App = app
    return served


def _add_page(app: Any, responses: Any, view: LiveView, encoder: ThreadPoolExecutor) -> None:
    page = _PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    async def show_page() -> Any:
        return responses.HTMLResponse(page, headers=headers)

    async def state(since: int = 0) -> Any:
        return responses.JSONResponse(view.state(since), headers={"Cache-Control": "no-store"})

    async def frame(after: int = 0) -> Any:
        """The latest frame; waits for one that is newer than number ``after``, and answers 204 if none comes."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + _LONGEST_WAIT
        while view.number == 0 or view.number == after:
            if clock.time() > deadline or view.ended:
                return responses.Response(status_code=204)
            await asyncio.sleep(_TICK)
        number, jpeg, classes = await clock.run_in_executor(encoder, view.picture)
        facts = {"X-Number": str(number), "X-Result": classes, "Cache-Control": "no-store"}
        return responses.Response(jpeg, media_type="image/jpeg", headers={**facts, "X-Content-Type-Options": "nosniff"})

    app.get("/")(show_page)
    app.get("/state.json")(state)
    app.get("/frame.jpg")(frame)


def _add_metrics(app: Any, responses: Any, metrics: StreamMetrics) -> None:
    header = require("fastapi").Header

    async def give_metrics(accept: str = header("")) -> Any:
        body, kind = metrics.text(accept)
        return responses.Response(body, headers={"Content-Type": kind})

    app.get("/metrics")(give_metrics)


async def _sample(view: LiveView) -> None:
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        view.sample()


def _policy(page: str) -> str:
    """A content security policy under which nothing but the page's own script and style runs: they are named by their hashes."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""Faults that tests bring into the world of a job: processes that die at a chosen point, and a network that errs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
from aiohttp import web

_LISTED = re.compile("<ETag>(.*?)</ETag>")


def dying_commits(folder: Path, when: str, after: int) -> str:
    """A folder that, on PYTHONPATH, kills the process that commits to a Delta table.

    Args:
        folder: to be made.
        when: ``before`` or ``after`` the log entry is written.
        after: so many commits live.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, deltalake\n"
        "commit, seen = deltalake.DeltaTable.create_write_transaction, []\n"
        "def dying(*args, **kwargs):\n"
        "    seen.append(None)\n"
        f"    if len(seen) <= {after}:\n"
        "        return commit(*args, **kwargs)\n"
        f"    if {when == 'after'}:\n"
        "        commit(*args, **kwargs)\n"
        "    os.kill(os.getpid(), 9)\n"
        "deltalake.DeltaTable.create_write_transaction = dying\n"
    )
    return str(folder)


def flaky_proxy(endpoint: str, share: float) -> contextlib.AbstractContextManager[str]:
    """A `proxy` that answers ``share`` of the requests with 500 or 503, or after a while."""
    rng = random.Random(0)
    return proxy(endpoint, fault=lambda: rng.choice(("500", "503", "slow")) if rng.random() < share else "")


def _as_it_is(text: str) -> str:
    return text


@contextlib.contextmanager
def proxy(
    endpoint: str,
    *,
    fault: Callable[[], str] = str,
    etag: Callable[[str], str] = _as_it_is,
    listed: Callable[[str], str] = _as_it_is,
) -> Iterator[str]:
    """An HTTP proxy before an S3 server.

    Args:
        endpoint: of the server.
        fault: of the next request: an HTTP status, ``slow``, or nothing.
        etag: what becomes of an ETag in the head of an answer to GET or HEAD, quotes and all.
        listed: what becomes of one in the body of a listing.

    Yields:
        Its endpoint. Signatures stay valid: the server is handed the client's request as it is.
    """
    loop = asyncio.new_event_loop()
    started: asyncio.Future[str] = loop.create_future()
    ended = asyncio.Event()
    serving = _serve(endpoint, fault, etag, listed, started, ended)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(_wait(started), loop).result(30)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


async def _wait(started: asyncio.Future[str]) -> str:
    return await started


async def _serve(
    endpoint: str,
    fault: Callable[[], str],
    etag: Callable[[str], str],
    listed: Callable[[str], str],
    started: asyncio.Future[str],
    ended: asyncio.Event,
) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            error = fault()
            if error == "slow":
                await asyncio.sleep(2)
            elif error:
                return web.Response(status=int(error), text="<Error><Code>InternalError</Code></Error>")
            url = aiohttp.client.URL(f"{endpoint}{request.raw_path}", encoded=True)
            async with session.request(request.method, url, headers=request.headers, data=body) as answer:
                dropped = ("transfer-encoding", "connection")
                headers = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
                if request.method in ("GET", "HEAD"):
                    told = {name: etag(value) for name, value in headers.items() if name.lower() == "etag"}
                    headers = {name: value for name, value in (headers | told).items() if value}
                if request.method == "HEAD":
                    return web.Response(status=answer.status, headers=headers)
                headers.pop("Content-Length", None)
                data = await answer.read()
                if "list-type" in request.query:
                    data = _LISTED.sub(lambda tag: f"<ETag>{listed(tag[1])}</ETag>", data.decode()).encode()
                return web.Response(status=answer.status, headers=headers, body=data)

        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        started.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await ended.wait()
        await runner.cleanup()

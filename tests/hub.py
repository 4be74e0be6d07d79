"""A server that answers what `huggingface_hub` asks of the Hugging Face Hub to download a model."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

COMMIT = hashlib.sha1(b"a commit").hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Serves ``folder/ORG/NAME/FILE`` as the files of revision `COMMIT`, which ``main`` is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        file = self.server.folder / repo / name
        if rest:
            self.server.asked.append(f"{self.command} {self.path}")
        if not rest or not file.parent.is_dir():
            self._missing("RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._missing("RevisionNotFound")
        elif not file.is_file():
            self._missing("EntryNotFound")
        else:
            data = file.read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self.send_response(HTTPStatus.NOT_FOUND)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on stderr."""


@contextlib.contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    """A running `Hub`."""
    with Hub(folder) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()

"""A server that answers as the Hugging Face Hub does, on this machine, and fails as it is told."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "somebody/numbers"
ADDRESS = f"hf://datasets/{REPOSITORY}"


class Hub(ThreadingHTTPServer):
    """One repository of data with its commits.

    Attributes:
        fail: Called with (kind of request, path in the repository) before each answer: None, or how it fails, as a
            status, `reset` without an answer, `cut` in the middle of a file, or seconds by which it is slow.
        asked: What was asked for: (kind, path).
        keys: The authorization that came with each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head = ""
        self.fail: Callable[[str, str], int | float | str | None] = lambda kind, path: None
        self.asked: list[tuple[str, str]] = []
        self.keys: list[str | None] = []

    def commit(self, files: dict[str, bytes]) -> None:
        """Makes these the files of its branch `main`; what was there stays in its own commit."""
        self.head = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.head] = files

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files."""
        name = self.head if revision == "main" else revision
        return (name, self.commits[name]) if name in self.commits else None

    def fetched(self) -> list[str]:
        """Files that were asked for, in this order."""
        return [path for kind, path in self.asked if kind == "resolve"]


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that has these files."""
    with Hub() as hub:
        hub.commit(files)
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        """What huggingface_hub asks for."""
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in _ROUTES.items():
            if match := re.fullmatch(pattern, path):
                answer(self, **match.groupdict())
                return
        self._say(404, {"error": "no such route"})

    do_HEAD = do_GET  # noqa: N815  # the names of http.server

    def do_POST(self) -> None:
        """Facts of some paths: as in the listing."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._say(404, {"error": "no such route"})

    def log_message(self, *_: Any) -> None:
        """Silently."""

    def _fails(self, kind: str, path: str) -> bool:
        self.server.asked.append((kind, path))
        self.server.keys.append(self.headers.get("Authorization"))
        how = self.server.fail(kind, path)
        if isinstance(how, float):
            time.sleep(how)
        elif isinstance(how, int):
            self._say(how, {"error": f"told to fail {self.headers.get('Authorization')}"})
        elif how == "reset":
            self.close_connection = True
            self.connection.close()
        return isinstance(how, int) or how == "reset"

    def _info(self, revision: str = "main") -> None:
        if self._fails("info", revision):
            return
        if (found := self.server.at(revision)) is None:
            self._say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        commit, files = found
        self._say(200, {"id": REPOSITORY, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def _tree(self, revision: str, folder: str | None = None) -> None:
        if self._fails("tree", folder or ""):
            return
        found = self.server.at(revision)
        prefix = f"{folder}/" if folder else ""
        below = {name: content for name, content in (found or ("", {}))[1].items() if name.startswith(prefix)}
        folders = sorted({prefix + name.removeprefix(prefix).partition("/")[0] for name in below} - below.keys())
        entries = [{"type": "directory", "path": one, "oid": _git_hash(one.encode())} for one in folders]
        entries += [_entry(name, content) for name, content in below.items() if "/" not in name.removeprefix(prefix)]
        if not entries:
            self._say(404, {"error": "no such path"}, {"X-Error-Code": "EntryNotFound"})
            return
        self._say(200, entries)

    def _file(self, revision: str, path: str) -> None:
        if self._fails("resolve", path):
            return
        found = self.server.at(revision)
        if found is None or path not in found[1]:
            self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = found[1][path]
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if begin:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_git_hash(content)}"')
        self.send_header("X-Repo-Commit", found[0])
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.fail("body", path) == "cut":
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[start:])

    def _say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, words in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, words)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_ROUTES: dict[str, Callable[..., None]] = {
    f"/api/datasets/{REPOSITORY}": _Request._info,
    f"/api/datasets/{REPOSITORY}/revision/(?P<revision>[^/]+)": _Request._info,
    f"/api/datasets/{REPOSITORY}/tree/(?P<revision>[^/]+)/?(?P<folder>.+)?": _Request._tree,
    f"/datasets/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": _Request._file,
}


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file in a listing; those that are not text lie outside of git, as on the Hub."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    if not name.endswith(".jsonl"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry

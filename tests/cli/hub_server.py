"""A hub on the loopback: the endpoints that `huggingface_hub` uses to make a repository, push to it and load from it.

It keeps the bytes it was sent, and every request, so that a test can see what arrived, and with which token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01234567"
#: A revision → path → bytes.
Branches = dict[str, dict[str, bytes]]


@dataclass
class Repo:
    """A repository."""

    private: bool = False
    branches: Branches = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


class HubServer(ThreadingHTTPServer):
    """The hub of the user `me`.

    Attributes:
        repos: Name → repository.
        blobs: SHA-256 → bytes that came by LFS.
        requests: Method, path and token of every request.
        answer: Status and message that every request gets instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.answer: tuple[int, str] | None = None
        #: Fails the upload of weights alone.
        self.storage: int = 200

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        hub, path = self.server, unquote(self.path.partition("?")[0])
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if path == "/api/agent-harnesses":  # the library asks for its own statistics, and would keep an answer
            return self._refuse(404, "no endpoint")
        hub.requests.append((self.command, path, token))
        if hub.answer is not None:
            return self._refuse(*hub.answer)
        if self.command == "PUT":
            return self._store(path, body)
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if token != TOKEN:
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, path):
                name, rest = found.groups()[0], found.groups()[1:]
                repo = hub.repos.get(name)
                if repo is None:
                    return self._refuse(404, "Repository not found", "RepoNotFound")
                return answer(self, name, repo, body, *rest)
        return self._refuse(404, f"no endpoint {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 - names of the standard library

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or "me"
        if owner != "me":
            return self._refuse(403, f"You don't have the rights to create a model under the namespace '{owner}'")
        name, there = f"{owner}/{wanted['name']}", f"{owner}/{wanted['name']}" in self.server.repos
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.repos.setdefault(name, Repo(private))
        return self._send({"url": f"{self.server.url}/{name}", "name": name}, 409 if there else 200)

    def _info(self, name: str, repo: Repo, body: bytes, revision: str | None) -> None:
        files = repo.branches.get(revision or "main")
        if files is None:
            return self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in files]
        return self._send({"id": name, "sha": _id_of(files), "private": repo.private, "siblings": siblings})

    def _branch(self, name: str, repo: Repo, body: bytes, revision: str) -> None:
        repo.branches[revision] = dict(repo.branches["main"])
        return self._send({})

    def _modes(self, name: str, repo: Repo, body: bytes, revision: str) -> None:
        """Weights go to the large storage, as `.gitattributes` of a new repository has it."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        found = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return self._send({"files": found})

    def _batch(self, name: str, repo: Repo, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.url}/storage/{wanted['oid']}?X-Signature=secret", "header": {}}
            verify = {"href": f"{self.server.url}/{name}.git/info/lfs/verify", "header": {}}
            there = wanted["oid"] in self.server.blobs
            objects.append(wanted if there else {**wanted, "actions": {"upload": upload, "verify": verify}})
        return self._send({"transfer": "basic", "objects": objects})

    def _store(self, path: str, body: bytes) -> None:
        if self.server.storage != 200:
            return self._refuse(self.server.storage, "")
        assert path == f"/storage/{hashlib.sha256(body).hexdigest()}"
        self.server.blobs[path.rpartition("/")[2]] = body
        return self._send({})

    def _verify(self, name: str, repo: Repo, body: bytes) -> None:
        asked = json.loads(body)
        return self._send({}) if len(self.server.blobs[asked["oid"]]) == asked["size"] else self._refuse(422, "size")

    def _commit(self, name: str, repo: Repo, body: bytes, revision: str) -> None:
        files = repo.branches[revision]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.blobs[value["oid"]]
        sha = _id_of(files)
        return self._send({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def _resolve(self, name: str, repo: Repo, body: bytes, revision: str, path: str) -> None:
        found = [files for branch, files in repo.branches.items() if revision in (branch, _id_of(files))]
        if not found or path not in found[0]:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        data = found[0][path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": _id_of(found[0])}
        return self._send(data, 200, headers)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return self._send({"error": message}, status, headers)

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_NAME = r"([\w.-]+/[\w.-]+?)"
_ROUTES: list[tuple[str, Any]] = [
    (rf"/api/models/{_NAME}/preupload/(.+)", _Handler._modes),
    (rf"/api/models/{_NAME}/commit/(.+)", _Handler._commit),
    (rf"/api/models/{_NAME}/branch/(.+)", _Handler._branch),
    (rf"/api/models/{_NAME}(?:/revision/(.+))?", _Handler._info),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (rf"/{_NAME}\.git/info/lfs/verify", _Handler._verify),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),
]


def _id_of(files: dict[str, bytes]) -> str:
    """A commit's id: 40 hexadecimal digits."""
    parts = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
    return hashlib.sha1(json.dumps(parts).encode("utf-8")).hexdigest()

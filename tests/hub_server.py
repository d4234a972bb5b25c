"""A model hub on loopback: the part of the Hub's HTTP protocol that huggingface_hub speaks, kept in memory.

Repositories with branches, commits and pull requests; small files in the commit itself, large ones by Git LFS (basic
transfer, no Xet); downloads with redirects, ETags and ranges; tokens that may read or write; faults on request.
Written after the requests of huggingface_hub (Apache-2.0), from which no code is taken, and the LFS batch API
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # tokens: the first may write everywhere, the second only read
IN_LFS = (".safetensors", ".bin")
REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"


@dataclass(frozen=True)
class File:
    """One file of a commit; `in_lfs` if it came by Git LFS."""

    content: bytes
    in_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.in_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    """Branches (and pull requests, `refs/pr/1`) are lists of commits, the last one being the head."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        commits = self.branches.setdefault(branch, [])
        state = f"{branch} {len(commits)} {message} {sorted((path, file.etag) for path, file in files.items())}"
        commits.append(Commit(hashlib.sha1(state.encode()).hexdigest(), message, files))
        return commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or a commit id names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == revision), None)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path matches.

    Attributes:
        status: answer with this status instead of serving; None: serve, but cut or corrupt the body.
        cut_after: close the connection after so many bytes of the body.
        flip: change one bit of the body's byte at this position.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    flip: int | None = None


class ConnectionLost(Exception):
    """The client has gone; nothing more is read or answered."""


class HubServer:
    """The state behind the HTTP interface; `with HubServer() as hub:` serves it at `hub.url`.

    Attributes:
        requests: method and path (with query) of every request so far, in order.
        unknown: the requests that this server has no answer for; tests expect none.
        on_event: called with the name of every stage of a request ("arrived POST /path", "half received …",
            "handled …"). If it returns True the connection is dropped on the spot.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.unknown: list[str] = []
        self.on_event: Callable[[str], bool | None] | None = None
        self.lock = threading.RLock()
        handler = type("Handler", (Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        # Large files are kept on another host, as the Hub's are: clients see its address, and send it no token.
        self.lfs_url = f"http://localhost:{self._http.server_port}/lfs"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def head(self, repository: str, revision: str = "main") -> Commit:
        commit = self.repositories[repository].at(revision)
        assert commit is not None, f"{repository} has no {revision}"
        return commit

    def commits(self, repository: str, branch: str = "main") -> list[Commit]:
        """The commits after the one that a new repository or branch begins with."""
        return self.repositories[repository].branches[branch][1:]

    def put(self, repository: str, files: dict[str, bytes], private: bool = False) -> Commit:
        """A new repository with these files, without the way over HTTP."""
        self.repositories[repository] = Repository(private)
        stored = {path: File(content, path.endswith(IN_LFS)) for path, content in files.items()}
        self.lfs |= {file.sha256: file.content for file in stored.values() if file.in_lfs}
        return self.repositories[repository].commit("main", "put", stored)

    def fault(self, method: str, path: str, **kind) -> Fault:
        self.faults.append(Fault(method, path, **kind))
        return self.faults[-1]

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Routes requests to methods by the table `ROUTES` below."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def serve(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, unquote(self.path)))
        self.fault = None
        try:
            self.event(f"arrived {self.command} {path}")
            self.body = self.receive(f"half received {self.command} {path}")
            self.fault = self.hub.next_fault(self.command, path)
            if self.fault and self.fault.status:
                return self.answer({"error": "on request"}, self.fault.status, self.fault.headers)
            for methods, pattern, access, route in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split():
                    groups = {name: unquote(value) for name, value in match.groupdict().items()}
                    if self.refused(access, groups.get("repository")):
                        return None
                    return route(self, **groups)
            self.hub.unknown.append(f"{self.command} {path}")
            self.answer({"error": "unknown to this server"}, 501)
        except (ConnectionLost, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def event(self, name: str) -> None:
        if self.hub.on_event and self.hub.on_event(name):
            raise ConnectionLost

    def receive(self, halfway: str) -> bytes:
        """The request's body; an event comes when half of it is there."""
        parts: list[bytes] = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if len(parts) == 1:
                    self.event(halfway)
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        if length:
            parts.append(self.rfile.read(length // 2))
            self.event(halfway)
            parts.append(self.rfile.read(length - length // 2))
        body = b"".join(parts)
        if len(body) != length:
            raise ConnectionLost
        return body

    def answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        length, fault = len(body), self.fault
        self.event(f"handled {self.command} {unquote(urlsplit(self.path).path)}")
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        if fault and fault.cut_after is not None:
            body, self.close_connection = body[: fault.cut_after], True
        self.wfile.write(body)

    # Who may do what

    def refused(self, access: str, name: str | None) -> bool:
        """Whether the request was answered with a refusal, as the Hub words it."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            message = "Invalid credentials in Authorization header"
            self.answer({"error": message}, 401, {"X-Error-Message": message})
            return True
        if access == "any":
            return False
        repository = self.hub.repositories.get(name) if name else None
        if name and (repository is None or (repository.private and not token)):
            status = 404 if token else 401
            self.answer({"error": "not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return True
        if access == "write" and token != WRITER and not (token and self.query.get("create_pr")):
            message = "You don't have the rights to create a model under this namespace"
            status = 403 if token else 401
            self.answer({"error": message}, status, {"X-Error-Message": message})
            return True
        return False

    # Repositories

    def whoami(self):
        self.answer({"type": "user", "name": "someone", "orgs": []})

    def no_programs(self):
        self.answer({"harnesses": []})

    def create_repository(self):
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        url = f"{self.hub.url}/{name}"
        with self.hub.lock:
            if name in self.hub.repositories:
                return self.answer({"error": "You already created this model repo", "url": url}, 409)
            self.hub.repositories[name] = Repository(private)
            self.hub.repositories[name].commit("main", "initial commit", {".gitattributes": File(b"*", False)})
        self.answer({"url": url})

    def create_branch(self, repository: str, branch: str):
        found = self.hub.repositories[repository]
        with self.hub.lock:
            if branch in found.branches:
                return self.answer({"error": "Reference already exists"}, 409)
            found.branches[branch] = found.branches["main"][-1:]
        self.answer({})

    def references(self, repository: str):
        branches = self.hub.repositories[repository].branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1].oid} for n, c in branches.items()]
        self.answer({"branches": listed, "tags": [], "converts": []})

    def validate_card(self):
        self.answer({"errors": [], "warnings": []})

    def commit_at(self, repository: str, revision: str) -> Commit | None:
        """The commit, or None after the answer that there is no such revision."""
        commit = self.hub.repositories[repository].at(revision)
        if commit is None:
            self.answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def information(self, repository: str, revision: str = "main"):
        if commit := self.commit_at(repository, revision):
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            private = self.hub.repositories[repository].private
            self.answer({"id": repository, "sha": commit.oid, "private": private, "siblings": siblings, "tags": []})

    def tree(self, repository: str, revision: str):
        if commit := self.commit_at(repository, revision):
            self.answer([{"type": "file", "path": path, **described(file)} for path, file in commit.files.items()])

    def folder(self, repository: str, revision: str, path: str):
        if commit := self.commit_at(repository, revision):
            listed = [
                {"type": "file", "path": p, **described(f)} for p, f in commit.files.items() if p.startswith(f"{path}/")
            ]
            if not listed:
                missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid}
                return self.answer({"error": "no such folder"}, 404, missing)
            self.answer(listed)

    # Upload

    def preupload(self, repository: str, revision: str):
        commit = self.commit_at(repository, revision)
        if commit is None:
            return
        answers = []
        for wanted in json.loads(self.body)["files"]:
            there = commit.files.get(wanted["path"])
            answers.append(
                {
                    "path": wanted["path"],
                    "uploadMode": "lfs" if wanted["path"].endswith(IN_LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": there.etag if there else None,
                }
            )
        self.answer({"files": answers})

    def lfs_batch(self, repository: str):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs:
                entry["actions"] = {"upload": {"href": f"{self.hub.lfs_url}/{wanted['oid']}"}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "checksum mismatch"}, 400)
        with self.hub.lock:
            self.hub.lfs[oid] = self.body
        self.answer({})

    def commit(self, repository: str, revision: str):
        found = self.hub.repositories[repository]
        operations = [json.loads(line) for line in self.body.splitlines()]
        header = operations[0]["value"]
        with self.hub.lock:
            head = self.commit_at(repository, revision)
            if head is None:
                return
            if header.get("parentCommit") not in (None, head.oid):
                return self.answer({"error": "A commit has happened since"}, 412)
            files = dict(head.files)
            for operation in operations[1:]:
                kind, value = operation["key"], operation["value"]
                if kind == "deletedFile" and value["path"] in files:
                    del files[value["path"]]
                elif kind == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), False)
                elif kind == "lfsFile" and value["oid"] in self.hub.lfs:
                    files[value["path"]] = File(self.hub.lfs[value["oid"]], True)
                else:
                    return self.answer({"error": f"cannot commit {kind} {value['path']}"}, 400)
            answer = {"success": True, "pullRequestUrl": None}
            if self.query.get("create_pr"):
                number = 1 + sum(branch.startswith("refs/pr/") for branch in found.branches)
                revision = f"refs/pr/{number}"
                found.branches[revision] = [head]
                answer["pullRequestUrl"] = f"{self.hub.url}/{repository}/discussions/{number}"
            oid = found.commit(revision, header["summary"], files).oid
        self.answer({**answer, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repository}/commit/{oid}"})

    # Download

    def resolve(self, repository: str, revision: str, path: str):
        commit = self.commit_at(repository, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return self.answer({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        file = commit.files[path]
        headers["ETag"] = f'"{file.etag}"'
        if file.in_lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            return self.answer(b"", 302, {**headers, "Location": f"{self.hub.lfs_url}/{file.sha256}"})
        self.answer_range(file.content, headers)

    def lfs_download(self, oid: str):
        self.answer_range(self.hub.lfs[oid], {"ETag": f'"{oid}"'})

    def answer_range(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match is None:
            return self.answer(content, 200, headers)
        self.hub.ranges.append(match[0])
        start = int(match[1])
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(content[start:], 206, {**headers, "Content-Range": span})


def described(file: File) -> dict:
    """A file's entry in a tree listing."""
    entry = {"oid": file.git_oid, "size": len(file.content)}
    if file.in_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def routes() -> Iterator[tuple[str, str, str, Callable]]:
    """Methods, path, access needed and handler."""
    # Matched before percent-decoding: a revision such as refs/pr/1 comes as one part of the path.
    api, revision = f"/api/models/{REPOSITORY}", "(?P<revision>[^/]+)"
    yield "GET", "/api/whoami-v2", "any", Handler.whoami
    yield "GET", "/api/agent-harnesses", "any", Handler.no_programs
    yield "POST", "/api/repos/create", "write", Handler.create_repository
    yield "POST", "/api/validate-yaml", "any", Handler.validate_card
    yield "POST", f"{api}/branch/(?P<branch>.+)", "write", Handler.create_branch
    yield "GET", f"{api}/refs", "read", Handler.references
    yield "POST", f"{api}/preupload/{revision}", "write", Handler.preupload
    yield "POST", f"{api}/commit/{revision}", "write", Handler.commit
    yield "GET", f"{api}/revision/{revision}", "read", Handler.information
    yield "GET", f"{api}/tree/{revision}", "read", Handler.tree
    yield "GET", f"{api}/tree/{revision}/(?P<path>.+)", "read", Handler.folder
    yield "GET", api, "read", Handler.information
    yield "POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", "read", Handler.lfs_batch
    yield "PUT", r"/lfs/(?P<oid>\w+)", "any", Handler.lfs_upload
    yield "GET HEAD", r"/lfs/(?P<oid>\w+)", "any", Handler.lfs_download
    yield "GET HEAD", f"/{REPOSITORY}/resolve/{revision}/(?P<path>.+)", "read", Handler.resolve


ROUTES = list(routes())

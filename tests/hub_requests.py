"""How the model hub on loopback answers requests; see `hub_server.py`."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_repositories import (
    IN_LFS,
    READER,
    WRITER,
    Commit,
    ConnectionLost,
    File,
    Repository,
    described,
)

if TYPE_CHECKING:
    from tests.hub_server import HubServer


class Handler(BaseHTTPRequestHandler):
    """Routes requests to methods by the table of `hub_server.py`."""

    hub: "HubServer"
    routes: list[tuple[str, str, str, Callable]]
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
            for methods, pattern, access, route in self.routes:
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

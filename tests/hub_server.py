"""A model hub on loopback: the part of the Hub's HTTP protocol that huggingface_hub speaks, kept in memory.

Repositories with branches, commits and pull requests; small files in the commit itself, large ones by Git LFS (basic
transfer, no Xet); downloads with redirects, ETags and ranges; tokens that may read or write; faults on request.
Written after the requests of huggingface_hub (Apache-2.0), from which no code is taken, and the LFS batch API
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md).
"""

import re
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer

from tests.hub_repositories import IN_LFS, READER, REPOSITORY, WRITER, Commit, Fault, File, Repository
from tests.hub_requests import Handler

__all__ = ["READER", "WRITER", "Commit", "Fault", "File", "HubServer"]


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
        handler = type("Handler", (Handler,), {"hub": self, "routes": list(routes())})
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

"""What the model hub on loopback keeps: repositories, commits, files, and the faults that it was asked for."""

import hashlib
from dataclasses import dataclass, field

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


def described(file: File) -> dict:
    """A file's entry in a tree listing."""
    entry = {"oid": file.git_oid, "size": len(file.content)}
    if file.in_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry

"""A Hub for tests, on 127.0.0.1, with only the standard library: the requests of huggingface_hub's client for models.

It has repositories with commits, branches and pull requests; regular files in the commit, LFS files on a second port,
as the real Hub stores them elsewhere; tokens with the names they can write under. Refusals have the status and error
code that the client expects. Any request can be made to fail or be cut off in the middle (`HubServer.faults`).

    with HubServer({"hf_one": ["one", "org"]}) as hub:     # HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET=1
        hub.files("org/name")
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin")
CUT = "cut"  # a fault: the connection breaks while the client sends


class Refusal(Exception):
    """An error response: status, `X-Error-Code` and message."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message} | body


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool = False

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        """What the client compares with its own file: sha256 for LFS files, git's object id for others."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)  # of all commits, oldest first
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, File], title: str) -> str:
        tree = [(path, file.git_oid) for path, file in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([len(self.commits), title, tree]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.titles.append(title)
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class HubServer:
    """
    Args:
        writers: for each token, the names under which it can write; the first is its user's.

    Attributes:
        requests: (method, path) of everything asked for, in order.
        uploads: sha256 of every LFS file that arrived completely, in order, including repeated ones.
        faults: (method, part of the path, `CUT` or a status): each fails one matching request, and is then removed.
    """

    def __init__(self, writers: dict[str, list[str]]):
        self.writers = writers
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads: list[str] = []
        self.faults: list[tuple[str, str, str | int]] = []
        self.lock = threading.RLock()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, routes)) for routes in (API, STORAGE)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return {path: file.data for path, file in repo.commits[repo.find(revision)].items()}

    def readable(self, request: "_Handler", repo_id: str) -> Repo:
        repo, names = self.repos.get(repo_id), self.names(request)
        if repo is None or (repo.private and repo_id.split("/")[0] not in names):
            # The client is not told which of the two it is; without a login the status is different.
            raise Refusal(404 if names else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: "_Handler", repo_id: str) -> Repo:
        repo = self.readable(request, repo_id)
        if repo_id.split("/")[0] not in self.names(request, needed=True):
            raise Refusal(403, f"You are not allowed to write to {repo_id}.")
        return repo

    def names(self, request: "_Handler", needed: bool = False) -> list[str]:
        """The names under which the request's token can write: none without a token."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if (token or needed) and token not in self.writers:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.writers.get(token, [])


# The responses of the API. Each function gets the server, the request and the groups of its route's pattern.
def whoami(hub, request):
    user, *orgs = hub.names(request, needed=True)
    return {"type": "user", "name": user, "orgs": [{"type": "org", "name": name} for name in orgs]}


def create_repo(hub, request):
    asked = request.json()
    names = hub.names(request, needed=True)
    owner = asked.get("organization") or names[0]
    repo_id = f"{owner}/{asked['name']}"
    if owner not in names:
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}".')
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        raise Refusal(409, "You already created this model repo", url=url)
    repo = hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
    repo.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n")}, "initial commit")
    return {"url": url, "name": repo_id, "id": repo_id}


def validate_yaml(hub, request):
    if not request.json()["content"].startswith("---\n"):
        raise Refusal(400, "Invalid metadata", errors=[{"message": "the card has no metadata"}])
    return {"errors": [], "warnings": []}


def create_branch(hub, request, repo_id, branch):
    repo = hub.writable(request, repo_id)
    if branch in repo.refs:
        raise Refusal(409, f"Reference already exists: {branch}")
    repo.refs[branch] = repo.find(request.json().get("startingPoint", "main"))
    return {}


def preupload(hub, request, repo_id, revision):
    repo = hub.readable(request, repo_id) if "create_pr" in request.query else hub.writable(request, repo_id)
    present = repo.commits[repo.find(revision)]
    ignored = present[".gitignore"].data.decode().split() if ".gitignore" in present else []

    def mode(path):
        oid = present[path].etag if path in present else None
        lfs = path.endswith(LFS_SUFFIXES)
        return {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": path in ignored,
            "oid": oid,
        }

    return {"files": [mode(file["path"]) for file in request.json()["files"]]}


def lfs_batch(hub, request, repo_id):
    hub.readable(request, repo_id)
    hub.names(request, needed=True)

    def place(asked):
        actions = {
            "upload": {"href": f"{hub.storage}/objects/{asked['oid']}"},
            "verify": {"href": f"{hub.endpoint}/{repo_id}.git/info/lfs/verify"},
        }
        return asked if asked["oid"] in hub.objects else asked | {"actions": actions}

    return {"transfer": "basic", "objects": [place(asked) for asked in request.json()["objects"]]}


def lfs_verify(hub, request, repo_id):
    asked = request.json()
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refusal(404, f"Object {asked['oid']} is not there or not of {asked['size']} bytes.")
    return {}


def commit(hub, request, repo_id, revision):
    as_pr = "create_pr" in request.query
    repo = hub.readable(request, repo_id) if as_pr else hub.writable(request, repo_id)
    files = dict(repo.commits[repo.find(revision)])
    title = ""
    for line in request.body().decode().splitlines():
        key, value = (item := json.loads(line))["key"], item["value"]
        if key == "header":
            title = value["summary"]
        elif key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, f"LFS object {value['oid']} of {value['path']} was never uploaded.")
            files[value["path"]] = File(hub.objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"Unknown operation {key!r}.")
    number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
    sha = repo.commit(f"refs/pr/{number}" if as_pr else revision, files, title)
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repo_id}/commit/{sha}"}
    return answer | ({"pullRequestUrl": f"{hub.endpoint}/{repo_id}/discussions/{number}"} if as_pr else {})


def model_info(hub, request, repo_id, revision="main"):
    repo = hub.readable(request, repo_id)
    sha = repo.find(revision)
    siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
    return {"_id": sha, "id": repo_id, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}


def tree(hub, request, repo_id, revision, folder=""):
    repo = hub.readable(request, repo_id)
    files = repo.commits[repo.find(revision)]
    listed = [path for path in sorted(files) if path.startswith(f"{folder}/" if folder else "")]
    if folder and not listed:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")

    def entry(path):
        found = files[path]
        record = {"type": "file", "path": path, "oid": found.git_oid, "size": len(found.data)}
        lfs = {"oid": found.sha256, "size": len(found.data), "pointerSize": 130}
        return record | ({"lfs": lfs} if found.lfs else {})

    return [entry(path) for path in listed]


def resolve(hub, request, repo_id, revision, path):
    repo = hub.readable(request, repo_id)
    sha = repo.find(revision)
    file = repo.commits[sha].get(path)
    request.answer_headers["X-Repo-Commit"] = sha
    if file is None:
        raise Refusal(404, f"{path} does not exist", "EntryNotFound")
    request.answer_headers["ETag"] = f'"{file.etag}"'
    if not file.lfs:
        return file.data
    request.answer_headers |= {
        "X-Linked-Etag": f'"{file.etag}"',
        "X-Linked-Size": str(len(file.data)),
        "Location": f"{hub.storage}/objects/{file.sha256}",
    }
    raise Refusal(302, "Found")


def put_object(hub, request, oid):
    data = request.body()
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "The content is not what its name says.")
    with hub.lock:
        hub.objects[oid] = data
        hub.uploads.append(oid)
    return {}


def get_object(hub, request, oid):
    if oid not in hub.objects:
        raise Refusal(404, "NoSuchKey")
    return hub.objects[oid]


ID, REF = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
API = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"/api/models/{ID}/branch/(.+)", create_branch),
    ("POST", rf"/api/models/{ID}/preupload/{REF}", preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"/{ID}\.git/info/lfs/verify", lfs_verify),
    ("POST", rf"/api/models/{ID}/commit/{REF}", commit),
    ("GET", rf"/api/models/{ID}", model_info),
    ("GET", rf"/api/models/{ID}/revision/{REF}", model_info),
    ("GET", rf"/api/models/{ID}/tree/{REF}(?:/(.+))?", tree),
    ("GET", rf"/{ID}/resolve/{REF}/(.+)", resolve),
]
STORAGE = [("PUT", r"/objects/(\w+)", put_object), ("GET", r"/objects/(\w+)", get_object)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    routes: list[Any]

    def handle_any(self):
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.answer_headers: dict[str, str] = {}
        self._body: bytes | None = None
        with self.hub.lock:
            self.hub.requests.append((self.command, address.path))
            fault = next((f for f in self.hub.faults if f[0] == self.command and f[1] in address.path), None)
            if fault:
                self.hub.faults.remove(fault)
        if fault and fault[2] == CUT:
            return self._cut()
        try:
            if fault:
                raise Refusal(int(fault[2]), "It was told to fail.")
            self._answer(200, self._respond(address.path))
        except Refusal as refusal:
            self.body()  # otherwise the rest of it would be taken for the next request
            if refusal.code:
                self.answer_headers["X-Error-Code"] = refusal.code
            if refusal.status >= 400:
                self.answer_headers["X-Error-Message"] = str(refusal)
            self._answer(refusal.status, refusal.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _respond(self, path: str) -> Any:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in self.routes:
            match = re.fullmatch(pattern, path)
            if match and wanted == method:
                self.body()
                with self.hub.lock:
                    return function(self.hub, self, *(unquote(group) for group in match.groups() if group))
        raise Refusal(404, f"This server knows no {method} {path}.")

    def _answer(self, status: int, content: Any):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in self.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if content is data else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        # Closes immediately and with an error, as if a cable were pulled.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def body(self) -> bytes:
        if self._body is None:
            self._body = self._read_body()
        return self._body

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def json(self) -> Any:
        return json.loads(self.body())

    def log_message(self, *args):
        """Prints nothing to stderr: `HubServer.requests` has all requests."""


def _handler(hub: HubServer, routes: list[Any]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"hub": hub, "routes": routes})

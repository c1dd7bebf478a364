"""The Hub of the tests over plain HTTP: what it refuses and how, and that a commit is all or nothing."""

import base64
import hashlib
import http.client
import json

import pytest
from hub_server import CUT, HubServer


WEIGHTS = b"weights" * 1000
OID = hashlib.sha256(WEIGHTS).hexdigest()
NAMES = {"hf_ada": ["ada", "org"], "hf_bob": ["bob"]}


@pytest.fixture
def hub():
    with HubServer(NAMES) as server:
        yield server


@pytest.fixture
def send(hub):
    """(status, headers, body) of a request; JSON bodies are decoded."""

    def send(method, path, body=None, token=None, port=hub.endpoint):
        connection = http.client.HTTPConnection(port.removeprefix("http://"), timeout=10)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers["Content-Type"] == "application/json" and content
        return answer.status, dict(answer.headers), json.loads(content) if is_json else content

    return send


@pytest.fixture
def repo(send):
    """A repository of `org` with only its first commit."""
    assert send("POST", "/api/repos/create", {"name": "model", "organization": "org"}, "hf_ada")[0] == 200
    return "org/model"


def lines(*operations):
    header = {"key": "header", "value": {"summary": "a title"}}
    return "\n".join(json.dumps(operation) for operation in (header, *operations)).encode()


def text(path, content):
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode()}}


def large(path, oid=OID):
    return {"key": "lfsFile", "value": {"path": path, "oid": oid, "size": len(WEIGHTS)}}


def test_tokens(send, repo):
    assert send("GET", "/api/whoami-v2", token="hf_ada")[2]["name"] == "ada"
    for token in (None, "hf_nobody"):
        status, headers, _ = send("GET", "/api/whoami-v2", token=token)
        assert status == 401 and headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert send("GET", f"/api/models/{repo}", token="hf_nobody")[0] == 401
    assert send("GET", f"/api/models/{repo}")[0] == 200  # public


def test_names(send, repo, hub):
    asked = {"name": "model", "organization": "org"}
    status, _, body = send("POST", "/api/repos/create", asked, "hf_ada")
    assert status == 409 and body["url"] == f"{hub.endpoint}/{repo}"
    assert send("POST", "/api/repos/create", asked, "hf_bob")[0] == 403
    assert send("POST", "/api/repos/create", {"name": "own"}, "hf_bob")[2]["name"] == "bob/own"
    for token, expected in (("hf_ada", 404), (None, 401)):
        status, headers, _ = send("GET", "/api/models/org/none", token=token)
        assert status == expected and headers["X-Error-Code"] == "RepoNotFound"


def test_private(send):
    asked = {"name": "own", "visibility": "private"}
    assert send("POST", "/api/repos/create", asked, "hf_ada")[0] == 200
    for token, expected in (("hf_ada", 200), ("hf_bob", 404), (None, 401)):
        assert send("GET", "/api/models/ada/own", token=token)[0] == expected
        assert send("HEAD", "/ada/own/resolve/main/.gitattributes", token=token)[0] == expected


def test_regular_files(send, repo, hub):
    status, _, body = send("POST", f"/api/models/{repo}/commit/main", lines(text("a.txt", b"hello\n")), "hf_ada")
    assert status == 200 and hub.repos[repo].titles == ["initial commit", "a title"]
    status, headers, content = send("GET", f"/{repo}/resolve/main/a.txt")
    assert (status, content, headers["X-Repo-Commit"]) == (200, b"hello\n", body["commitOid"])
    # The output of `git hash-object`.
    assert headers["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'
    status, headers, content = send("HEAD", f"/{repo}/resolve/main/a.txt")
    assert (status, headers["Content-Length"], content) == (200, "6", b"")
    status, headers, _ = send("GET", f"/{repo}/resolve/main/b.txt")
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
    status, headers, _ = send("GET", f"/{repo}/resolve/nowhere/a.txt")
    assert (status, headers["X-Error-Code"]) == (404, "RevisionNotFound")
    deleted = {"key": "deletedFile", "value": {"path": "a.txt"}}
    assert send("POST", f"/api/models/{repo}/commit/main", lines(deleted), "hf_ada")[0] == 200
    assert send("GET", f"/{repo}/resolve/main/a.txt")[0] == 404
    assert send("GET", f"/{repo}/resolve/{body['commitOid']}/a.txt")[2] == b"hello\n"


def test_large_files(send, repo, hub):
    modes = send(
        "POST", f"/api/models/{repo}/preupload/main", {"files": [{"path": "w.safetensors"}, {"path": "a"}]}, "hf_ada"
    )
    assert [file["uploadMode"] for file in modes[2]["files"]] == ["lfs", "regular"]
    asked = {"objects": [{"oid": OID, "size": len(WEIGHTS)}]}
    (place,) = send("POST", f"/{repo}.git/info/lfs/objects/batch", asked, "hf_ada")[2]["objects"]
    assert place["actions"]["upload"]["href"] == f"{hub.storage}/objects/{OID}" and hub.storage != hub.endpoint
    assert send("PUT", f"/objects/{OID}", WEIGHTS[1:], port=hub.storage)[0] == 400
    assert hub.uploads == []
    assert send("PUT", f"/objects/{OID}", WEIGHTS, port=hub.storage)[0] == 200
    assert hub.uploads == [OID]
    assert "actions" not in send("POST", f"/{repo}.git/info/lfs/objects/batch", asked, "hf_ada")[2]["objects"][0]
    assert send("POST", f"/api/models/{repo}/commit/main", lines(large("w.safetensors")), "hf_ada")[0] == 200
    status, headers, _ = send("HEAD", f"/{repo}/resolve/main/w.safetensors")
    assert (status, headers["Location"]) == (302, f"{hub.storage}/objects/{OID}")
    assert (headers["X-Linked-Etag"], headers["X-Linked-Size"]) == (f'"{OID}"', str(len(WEIGHTS)))
    assert send("GET", f"/objects/{OID}", port=hub.storage)[2] == WEIGHTS
    (entry,) = [e for e in send("GET", f"/api/models/{repo}/tree/main?recursive=true")[2] if "lfs" in e]
    assert entry["path"] == "w.safetensors" and entry["lfs"]["oid"] == OID


def test_a_commit_that_is_refused_changes_nothing(send, repo, hub):
    before = hub.files(repo)
    commit = f"/api/models/{repo}/commit/main"
    missing = {"key": "deletedFile", "value": {"path": "none"}}
    for second in (large("w.safetensors"), missing, {"key": "strange", "value": {}}):
        assert send("POST", commit, lines(text("a.txt", b"a"), second), "hf_ada")[0] in (400, 404)
    assert send("POST", commit, lines(text("a.txt", b"a")), "hf_bob")[0] == 403
    assert send("POST", commit, lines(text("a.txt", b"a")))[0] == 401
    assert hub.files(repo) == before and hub.repos[repo].titles == ["initial commit"]


def test_branches_and_pull_requests(send, repo, hub):
    branch = f"/api/models/{repo}/branch/next"
    assert send("POST", branch, {}, "hf_bob")[0] == 403
    assert send("POST", branch, {}, "hf_ada")[0] == 200
    assert send("POST", branch, {}, "hf_ada")[0] == 409
    assert send("POST", f"/api/models/{repo}/commit/next", lines(text("a", b"a")), "hf_ada")[0] == 200
    status, _, body = send("POST", f"/api/models/{repo}/commit/main?create_pr=1", lines(text("b", b"b")), "hf_bob")
    assert status == 200 and body["pullRequestUrl"].endswith("/discussions/1")
    assert "a" in hub.files(repo, "next") and "b" in hub.files(repo, "refs/pr/1")
    assert send("GET", f"/{repo}/resolve/refs%2Fpr%2F1/b")[2] == b"b"
    assert not {"a", "b"} & hub.files(repo).keys()


def test_faults(send, repo, hub):
    hub.faults = [("PUT", OID, CUT), ("GET", "/whoami", 503)]
    with pytest.raises(ConnectionError):
        send("PUT", f"/objects/{OID}", WEIGHTS * 1000, port=hub.storage)
    assert hub.uploads == [] and OID not in hub.objects
    assert send("GET", "/api/whoami-v2", token="hf_ada")[0] == 503
    # Each fault applies once.
    assert send("GET", "/api/whoami-v2", token="hf_ada")[0] == 200
    assert send("PUT", f"/objects/{OID}", WEIGHTS, port=hub.storage)[0] == 200
    assert hub.requests[-1] == ("PUT", f"/objects/{OID}") and hub.faults == []


def test_an_unknown_address_is_said_so(send):
    status, _, body = send("POST", "/api/strange", {})
    assert status == 404 and body["error"] == "This server knows no POST /api/strange."

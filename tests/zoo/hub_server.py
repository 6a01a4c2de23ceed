"""A server at localhost that speaks the part of the Hub's API that its client uses here."""

import base64
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "planted" * 4  # who sends it may do everything
_LFS = re.compile(r"(^|/)d/|\.(safetensors|npz|pth|bin|msgpack)$")


class HubServer:
    """Repositories, {name: {commit: {path: content}}}, and what goes wrong with them.

    Attributes:
        branches: {repository: {branch: commit}}.
        gated, private: repositories that only those with the token may read, or see.
        sizes: {path: size that the listing claims}.
        served: {path: content that is sent in place of the listed one}.
        cuts: {path: numbers of bytes after which the connection is cut}, one for each request.
        requests: "METHOD path range" of each request.
        tokens: whether each request had the token.
    """

    def __init__(self):
        self.repos, self.branches, self.gated, self.private = {}, {}, set(), set()
        self.sizes, self.served, self.cuts, self.requests, self.tokens, self.objects = {}, {}, {}, [], [], {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self):
                outer.requests.append(" ".join(filter(None, (self.command, self.path, self.headers["Range"]))))
                outer.tokens.append(self.headers["Authorization"] == f"Bearer {TOKEN}")
                self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                outer.answer(self)
                self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self.url = f"http://localhost:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit all files of a repository; returns the commit."""
        commit = hashlib.sha1(json.dumps([repo, branch, len(self.repos.get(repo, {}))]).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def add_folder(self, repo: str, folder, prefix: str = "", branch: str = "main") -> str:
        """Commit the files of a local folder."""
        files = {
            prefix + path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.add(repo, files, branch)

    def got(self) -> list[str]:
        """The paths of the files that were sent, in order."""
        return [
            unquote(line.split("/", 5)[5].split(" ")[0])
            for line in self.requests
            if "GET" in line and "/resolve/" in line
        ]

    def answer(self, request):
        path, token = unquote(urlsplit(request.path).path), self.tokens[-1]
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", self.tree),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
            (r"/api/models/([^/]+/[^/]+)/refs", self.refs),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.file),
            (r"/api/models/([^/]+/[^/]+)/auth-check/write", lambda request, repo: json_to(request, {})),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.commit),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.lfs),
        ):
            if match := re.fullmatch(pattern, path):
                repo = match[1]
                if repo not in self.repos or (repo in self.private and not token):
                    return json_to(request, {}, 401, {"X-Error-Code": "RepoNotFound"})
                if method == self.file and repo in self.gated and not token:
                    return json_to(request, {}, 403, {"X-Error-Code": "GatedRepo"})
                return method(request, *match.groups())
        if path == "/api/whoami-v2":
            return json_to(request, {"name": "owner"}, 200 if token else 401)
        if path == "/api/validate-yaml":
            return json_to(request, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            values = json.loads(request.body)
            self.add(repo := f"{values['organization']}/{values['name']}", {})
            return json_to(request, {"url": f"{self.url}/{repo}"})
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = request.body
            return json_to(request, {})
        return json_to(request, {}, 404)

    def find(self, repo: str, revision: str | None) -> str | None:
        commit = self.branches[repo].get(revision or "main", revision)
        return commit if commit in self.repos[repo] else None

    def info(self, request, repo, revision):
        if commit := self.find(repo, revision):
            files = [{"rfilename": path} for path in self.repos[repo][commit]]
            return json_to(request, {"id": repo, "sha": commit, "siblings": files})
        return json_to(request, {}, 404, {"X-Error-Code": "RevisionNotFound"})

    def refs(self, request, repo):
        branches = [{"name": name, "ref": name, "targetCommit": sha} for name, sha in self.branches[repo].items()]
        return json_to(request, {"branches": branches, "tags": [], "converts": []})

    def tree(self, request, repo, revision):
        if not self.find(repo, revision):
            return json_to(request, {}, 404, {"X-Error-Code": "RevisionNotFound"})
        entries = []
        for path, content in self.repos[repo][self.find(repo, revision)].items():
            size = self.sizes.get(path, len(content))
            entry = {"type": "file", "path": path, "size": size, "oid": git_hash(content)}
            if _LFS.search(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
            entries.append(entry)
        return json_to(request, entries)

    def file(self, request, repo, revision, path):
        commit = self.find(repo, revision)
        content = self.repos[repo].get(commit, {}).get(path)
        if content is None:
            return json_to(request, {}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest() if _LFS.search(path) else git_hash(content)
        content, asked = self.served.get(path, content), request.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Length": len(content) - start}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        send(request, 206 if asked else 200, headers)
        if request.command == "GET":
            cut = self.cuts[path].pop(0) if self.cuts.get(path) else len(content)
            request.wfile.write(content[start : start + cut])

    def preupload(self, request, repo, revision):
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if _LFS.search(each["path"]) else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(request.body)["files"]
        ]
        return json_to(request, {"files": files})

    def lfs(self, request, repo):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
            for each in json.loads(request.body)["objects"]
        ]
        return json_to(request, {"transfer": "basic", "objects": objects})

    def commit(self, request, repo, revision):
        files = dict(self.repos[repo][self.find(repo, revision)])
        for line in request.body.splitlines():
            key, value = (each := json.loads(line))["key"], each["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self.add(repo, files, revision)
        return json_to(request, {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit})


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send(request, status: int, headers: dict):
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, str(value))
    request.end_headers()


def json_to(request, value, status: int = 200, headers: dict | None = None):
    body = json.dumps(value).encode()
    send(request, status, {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})})
    if request.command != "HEAD":
        request.wfile.write(body)

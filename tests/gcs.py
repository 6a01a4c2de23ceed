"""A Google Cloud Storage emulator: gcp-storage-emulator, plus what it lacks and our clients need.

TensorStore reads the generation of an object from a header and writes on the condition that it is unchanged;
array_record asks for the last bytes of an object.
"""

import contextlib
import logging
import os
import re
import socket
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

_PATHS = [
    re.compile(r"(?:/upload|/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^/]+))?"),
    re.compile(r"/(?P<bucket>[^/]+)/(?P<name>.+)"),
]
logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it logs each object that is missing


class _Handler(RequestHandler):
    lock = threading.Lock()
    asked: list[str] = []

    def _query(self, key):
        return parse_qs(urlparse(self.path).query).get(key, [None])[0]

    def _object(self):
        """What the storage knows of the object that is asked for; {} where there is none."""
        match = next(filter(None, (path.fullmatch(urlparse(self.path).path) for path in _PATHS)), None)
        name = match and (match["name"] or self._query("name"))
        try:
            return self.storage.get_file_obj(match["bucket"], unquote(name)) if name else {}
        except NotFound:
            return {}

    def _serve(self, serve):
        with self.lock, contextlib.suppress(ConnectionError):  # clients leave once they know the status
            self.asked.append(self.path)
            found = self._object()
            self.generation = int(found.get("generation", 0))
            wanted, refused = self._query("ifGenerationMatch"), self._query("ifGenerationNotMatch")
            tail = re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range", ""))
            if tail and found:
                self.headers.replace_header("Range", f"bytes={max(0, int(found['size']) - int(tail[1]))}-")
            if wanted is not None and int(wanted) != self.generation:
                self._refuse(412)
            elif refused is not None and int(refused) == self.generation:
                self._refuse(304 if self.command == "GET" else 412)
            else:
                serve()

    def _refuse(self, status):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        if self.command == "GET" and self.generation:
            self.send_header("x-goog-generation", str(self.generation))
        super().end_headers()

    def do_GET(self):
        self._serve(super().do_GET)

    def do_POST(self):
        self._serve(super().do_POST)

    def do_PUT(self):
        self._serve(super().do_PUT)

    def do_DELETE(self):
        self._serve(super().do_DELETE)

    def do_PATCH(self):
        self._serve(super().do_PATCH)


def _clients_use(address):
    """gcsfs, TensorStore and array_record look in these variables."""
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    return mock.patch.dict(os.environ, dict.fromkeys(names, address))


@contextlib.contextmanager
def emulator(*names):
    """Serves empty buckets of these names from memory, to this process and those that it starts.

    Yields the list of the paths that are asked for.
    """
    storage, asked = Storage(use_memory_fs=True), []
    handler = type("Handler", (_Handler,), {"asked": asked})
    for name in names:
        buckets.create_bucket(name, storage)
    server = ThreadingHTTPServer(("localhost", 0), partial(handler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with _clients_use(f"http://localhost:{server.server_port}"):
        yield asked
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def unreachable(accepts):
    """Sends the clients to a port that refuses connections, or to one that accepts them and never answers."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        if accepts:
            server.listen(128)
        with _clients_use(f"http://localhost:{server.getsockname()[1]}"):
            yield

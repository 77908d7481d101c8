"""An S3 service on loopback for tests: moto's, with a log of what was asked for and a second port
that only reads. It prints both ports, on which it listens already.

python s3.py LOG
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class Logged:
    """A line for each request: the port's kind, the method, the path, and the bytes of the
    answer.
    """

    def __init__(self, app: Any, log: Path, *, writable: bool) -> None:
        self._app, self._log, self._writable = app, log, writable
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in ("GET", "HEAD") and not self._writable:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>read only</Message></Error>"]
        body = b"".join(self._app(environ, start_response))
        with self._writing, self._log.open("a") as file:
            file.write(f"{'write' if self._writable else 'read'} {method} {path} {len(body)}\n")
        return [body]


def main() -> None:
    log = Path(sys.argv[1])
    app = DomainDispatcherApplication(create_backend_app)
    servers = [
        make_server("127.0.0.1", 0, Logged(app, log, writable=writable), threaded=True)
        for writable in (True, False)
    ]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(*(server.port for server in servers), flush=True)
    servers[0].serve_forever()


if __name__ == "__main__":
    main()

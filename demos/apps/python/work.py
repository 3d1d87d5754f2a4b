# SPDX-License-Identifier: Apache-2.0
"""A web application with threads and its clients, sqlite3, processes, a mapping; numpy if there."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import mmap
import multiprocessing
import socketserver
import sqlite3
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

BASE: Final = "/root/work.db"


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Silent(WSGIRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    with sqlite3.connect(BASE, timeout=60) as base:
        base.execute("INSERT INTO visits VALUES (?)", (environ["PATH_INFO"],))
    return [environ["PATH_INFO"].encode()]


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        body: bytes = answer.read()
    return body


def serve_and_fetch() -> None:
    with sqlite3.connect(BASE) as base:
        base.execute("DROP TABLE IF EXISTS visits")
        base.execute("CREATE TABLE visits (path TEXT)")
    with make_server("127.0.0.1", 0, application, Server, Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        with ThreadPoolExecutor(4) as pool:
            bodies = list(pool.map(fetch, [f"{place}/{number}" for number in range(20)]))
        server.shutdown()
    assert bodies == [b"/%d" % number for number in range(20)]
    with sqlite3.connect(BASE) as base:
        assert base.execute("SELECT count(DISTINCT path) FROM visits").fetchone() == (20,)


def square(number: int) -> int:
    return number * number


def map_a_file() -> None:
    with tempfile.NamedTemporaryFile(dir="/root") as file:
        file.truncate(1 << 20)
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[500_000:500_006] = b"serdab"
            mapped.flush()
        told = subprocess.run(["/bin/sha256sum", file.name], capture_output=True, check=True).stdout
    expected = bytearray(1 << 20)
    expected[500_000:500_006] = b"serdab"
    assert told.split()[0].decode() == hashlib.sha256(expected).hexdigest()


def multiply() -> str:
    if importlib.util.find_spec("numpy") is None:
        return "no numpy on this machine"
    numpy = importlib.import_module("numpy")
    matrix = numpy.arange(250_000, dtype=float).reshape(500, 500)
    numpy.save("/root/matrix.npy", matrix @ matrix.T)
    loaded = numpy.load("/root/matrix.npy", mmap_mode="r")
    assert numpy.allclose(loaded, loaded.T)
    return f"numpy {numpy.__version__}"


if __name__ == "__main__":
    serve_and_fetch()
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert sum(workers.map(square, range(100))) == 328_350
    map_a_file()
    print(f"python: a web application, sqlite3, processes, a mapping; {multiply()}")

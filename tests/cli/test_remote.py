"""`uhrseg predict` on a COG over HTTP: a server in the test counts what is asked of it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.cli.conftest import Uhrseg
from tests.rasters import RELIEF, make_card, make_model, save_model, terrain, write_raster

FLAT = ("--precision", "fp32", "--device", "cpu")


class Server(ThreadingHTTPServer):
    """Serves one folder with range requests, and notes the paths asked for and the bytes sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.asked.append(self.path)
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), len(data) - 1)) if wanted else (0, len(data) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])
            self.server.sent += last - first + 1

    def log_message(self, format: str, *args: object) -> None:
        """The test's output is not the server's log."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def single_scale(tmp_path: Path) -> Path:
    """A model of relief without context: a part of a scene needs no more than that part, no mean of the whole."""
    card = make_card({"trunk": "threshold", "thresholds": [-1.0, 1.0]}, RELIEF, context_factor=None)
    return save_model(card, make_model(card), tmp_path / "single")


def test_a_part_of_a_remote_cog_is_read_by_ranges(uhrseg: Uhrseg, server: Server, single_scale: Path) -> None:
    ground = terrain(2048, 2048)[0] + np.random.default_rng(1).normal(0, 1, (2048, 2048)).astype(np.float32)
    plain = write_raster(server.folder.parent / "plain.tif", ground)
    cog = server.folder / "x.tif"
    rasterio.shutil.copy(plain, cog, driver="COG", BLOCKSIZE=256, COMPRESS="NONE")
    part = ("--bounds", "500900,4998900,501100,4999100", "--model", single_scale, *FLAT)
    result = uhrseg("predict", f"{server.url}/x.tif", *part, "-o", "remote.tif")
    assert result.exit_code == 0, result.output
    assert set(server.asked) == {"/x.tif"}, "no folder listing, no search for sidecars"
    assert 0 < server.sent < cog.stat().st_size / 5
    local = uhrseg("predict", cog, *part, "-o", "local.tif")
    assert local.exit_code == 0, local.output
    with rasterio.open("remote.tif") as one, rasterio.open("local.tif") as other:
        assert one.shape == (200, 200) and one.transform == other.transform
        np.testing.assert_array_equal(one.read(1), other.read(1))
        assert set(np.unique(one.read(1))) == {0, 1, 2}, "the comparison needs several classes"


def test_a_missing_remote_file_and_a_dead_server_are_one_sentence(
    uhrseg: Uhrseg, server: Server, single_scale: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/x.tif"
    for url in (f"{server.url}/gone.tif", dead):
        result = uhrseg("predict", url, "--model", single_scale, "-o", "out.tif", *FLAT)
        assert result.exit_code == 2, result.output
        assert url in result.stderr and "Traceback" not in result.stderr
        assert not Path("out.tif").exists()

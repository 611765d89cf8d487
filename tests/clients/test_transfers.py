"""Long bodies both ways over every protocol, equal by hash. At full length 1 GiB each: `make drills`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.conftest import Pki, need, next_port, run
from tests.clients.origin import PIECE, blob, hash_of_blob
from tests.clients.test_curl import config
from tests.gateway import running

pytestmark = pytest.mark.drill
SIZE = int((1 << 30) * float(os.environ.get("TCPGATE_DRILL_SCALE", "1"))) // len(PIECE) * len(PIECE) + 17


@pytest.mark.parametrize("way", ["h1", "h1-tls", "h2", "h2-tls"])
async def test_a_long_body_arrives_whole_each_way(tmp_path: Path, pki: Pki, origin: int, way: str) -> None:
    need("curl")
    port, plain = next_port(), next_port()
    file = tmp_path / "blob"
    with file.open("wb") as out:
        for piece in blob(SIZE):
            out.write(piece)
    wanted = hash_of_blob(SIZE)
    more = f'[listeners.plain]\nbind = ["127.0.0.1:{plain}"]\nhttp2 = true\nlimits = {{ body = "2GiB" }}'
    limits = 'limits = { body = "2GiB" }'
    text = config(tmp_path, pki, origin, port, more=more).replace(
        "[listeners.web.tls]", f"{limits}\n[listeners.web.tls]"
    )
    option = {"h1": "--http1.1", "h1-tls": "--http1.1", "h2": "--http2-prior-knowledge", "h2-tls": "--http2"}[way]
    site = f"https://localhost:{port}" if way.endswith("tls") else f"http://localhost:{plain}"
    call = ["curl", "-sS", "--fail", option, "--cacert", str(pki.ca)]
    async with running(tmp_path, text) as gateway:
        said = await run(*call, "-T", file, f"{site}/hash", within=600)
        assert said == f"{wanted} {SIZE}"
        got = tmp_path / "got"
        await run(*call, "-o", got, f"{site}/blob?size={SIZE}", within=600)
        assert (await run("sha256sum", got)).split()[0] == wanted
        await gateway.access_line(lambda line: line["path"] == "/blob")
        for line in gateway.access_lines():
            assert (line["reason"], line["detail"]) == ("ok", ""), (line["method"], line["bytes_in"], line["bytes_out"])

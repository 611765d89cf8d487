"""Chromium on a page behind the gateway: HTTP/2 by ALPN, a fetch that uploads, a WebSocket, all over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tests.clients.conftest import Pki, need, next_port
from tests.clients.test_curl import config
from tests.gateway import running

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>waiting</title><pre id=said></pre><script>
(async () => {
  const said = {};
  const large = "y".repeat(300000);
  said.put = await (await fetch("/hash", {method: "PUT", body: large})).text();
  said.many = (await Promise.all([...Array(40).keys()].map(n => fetch("/head?" + n)))).every(one => one.ok);
  said.version = performance.getEntriesByType("navigation")[0].nextHopProtocol;
  said.fetched = performance.getEntriesByType("resource")[0].nextHopProtocol;
  said.echo = await new Promise((resolve, reject) => {
    const socket = new WebSocket("wss://" + location.host + "/ws");
    const got = [];
    socket.onopen = () => { socket.send("one"); socket.send("x".repeat(70000)); };
    socket.onmessage = event => { got.push(event.data.length); if (got.length == 2) socket.close(1000); };
    socket.onclose = event => resolve(got.join() + " " + event.code);
    socket.onerror = () => reject("WebSocket failed");
  });
  document.getElementById("said").textContent = JSON.stringify(said);
  document.title = "done";
})().catch(error => { document.title = "failed: " + error; });
</script>"""


async def echo(request: trio_websocket.WebSocketRequest) -> None:
    """A WebSocket endpoint."""
    socket = await request.accept()
    with contextlib.suppress(trio_websocket.ConnectionClosed):
        while True:
            await socket.send_message(await socket.get_message())


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, with a profile that is gone at the end."""
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--ignore-certificate-errors", f"--user-data-dir={profile}"),
        ):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            driver.set_page_load_timeout(60)
            yield driver
        finally:
            driver.quit()


def _is_over(driver: webdriver.Chrome) -> bool:
    return driver.title != "waiting"


def visit(url: str, shot: Path) -> dict[str, Any]:
    """What the page has to say."""
    with chromium() as driver:
        driver.get(url)
        WebDriverWait(driver, 60).until(_is_over)
        driver.save_screenshot(str(shot))
        assert driver.title == "done"
        said: dict[str, Any] = json.loads(driver.find_element("id", "said").text)
        return said


async def test_a_browser_loads_uploads_and_speaks_websocket(
    tmp_path: Path, pki: Pki, origin: int, nursery: trio.Nursery
) -> None:
    need("chromium", "chromedriver")
    port, socket_port = next_port(), next_port()
    await nursery.start(trio_websocket.serve_websocket, echo, "127.0.0.1", socket_port, None)
    page = PAGE.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    more = f"""[routes.page]
path = "=/"
respond = {{ status = 200, content_type = "text/html", body = "{page}" }}
[routes.ws]
path = "/ws"
upstream = "ws"
[upstreams.ws]
endpoints = ["127.0.0.1:{socket_port}"]"""
    async with running(tmp_path, config(tmp_path, pki, origin, port, more=more)) as gateway:
        shot = Path(os.environ.get("TCPGATE_SCREENSHOTS", tmp_path)) / "browser.png"
        said = await trio.to_thread.run_sync(visit, f"https://localhost:{port}/", shot)
        assert said["version"] == said["fetched"] == "h2"
        assert said["put"].endswith(" 300000")
        assert said["many"] is True
        assert said["echo"] == "3,70000 1000"
        tunnel = await gateway.access_line(lambda line: line["path"] == "/ws")
        assert tunnel["reason"] in ("ok", "tunnel_closed")

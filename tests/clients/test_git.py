"""git over HTTPS: a clone and a push-sized fetch by git's smart protocol, chunked requests and answers included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.conftest import Pki, need, next_port, run
from tests.clients.test_curl import config
from tests.gateway import running

pytestmark = pytest.mark.slow


async def test_git_clones_over_https(tmp_path: Path, pki: Pki, origin: int) -> None:
    need("git")
    port = next_port()
    work, bare = tmp_path / "work", tmp_path / "git" / "site.git"
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "HOME": str(tmp_path)}
    env |= {f"GIT_{who}_{what}": "a@b.test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    await run("git", "init", "-q", "-b", "main", work, env=env)
    (work / "large").write_bytes(os.urandom(3 << 20))
    for number in range(20):
        (work / f"file{number}").write_text(f"{number}\n" * 1000)
    await run("git", "-C", work, "add", ".", env=env)
    await run("git", "-C", work, "commit", "-qm", "all of it", env=env)
    await run("git", "clone", "-q", "--bare", work, bare, env=env)
    wanted = (await run("git", "-C", work, "rev-parse", "HEAD^{tree}", env=env)).strip()
    async with running(tmp_path, config(tmp_path, pki, origin, port)) as gateway:
        url = f"https://localhost:{port}/git/site.git"
        for index, version in enumerate(("HTTP/1.1", "HTTP/2")):
            got = tmp_path / f"got{index}"
            trusting = {**env, "GIT_SSL_CAINFO": str(pki.ca)}
            await run("git", "-c", f"http.version={version}", "clone", "-q", url, got, env=trusting)
            assert (await run("git", "-C", got, "rev-parse", "HEAD^{tree}", env=env)).strip() == wanted
        await gateway.access_line(lambda line: line["proto"] == "http/1.1")
        await gateway.access_line(lambda line: line["proto"] == "h2")

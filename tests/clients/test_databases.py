"""psql and redis-cli through tcp listeners: plain, TLS ended at the gateway, and TLS passed through by server name.

PostgreSQL besides with TLS ended, and begun anew with the server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest

from tests.clients.conftest import Pki, need, next_port, run, running_process
from tests.gateway import Json, head_of, running

pytestmark = pytest.mark.slow


def postgres_program(name: str) -> str | None:
    """Where Debian, or the machine, keeps a program of the server."""
    folders = [str(folder / "bin") for folder in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))


@attrs.frozen
class Databases:
    """Servers of our own: each without TLS at one port, and with it at the other (PostgreSQL has both at one)."""

    postgres: int
    redis: int
    redis_tls: int


@pytest.fixture
def databases(tmp_path: Path, pki: Pki) -> Iterator[Databases]:
    """Redis and PostgreSQL, started for this test."""
    need("redis-server", "redis-cli", "psql")
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    if initdb is None or server is None:
        need("postgres")
        return
    ports = Databases(next_port(), next_port(), next_port())
    cert, key = pki.issue("redis.example.test", "db.example.test", "localhost")
    redis = [
        *("redis-server", "--save", "", "--dir", str(tmp_path), "--port", str(ports.redis)),
        *("--tls-port", str(ports.redis_tls), "--tls-cert-file", str(cert), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(pki.ca), "--tls-auth-clients", "no", "--logfile", str(tmp_path / "redis.log")),
    ]
    # PostgreSQL refuses to run as root, and its user must be able to read the key, and no other.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0 and user not in {entry.pw_name for entry in pwd.getpwall()}:
        user = "nobody"
    data = Path(subprocess.check_output(["mktemp", "-d", "/tmp/tcpgate-pg-XXXXXX"], text=True).strip())
    try:
        for file in (cert, key):
            shutil.copy(file, data / file.name)
        (data / key.name).chmod(0o600)
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", user, str(data)], check=True)
        become = ["setpriv", f"--reuid={user}", "--clear-groups"] if os.geteuid() == 0 else []
        made = [*become, initdb, "-D", str(data / "db"), "-A", "trust", "-U", "ada", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, timeout=120, cwd=data)
        settings = {
            "port": ports.postgres,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": data,
            "ssl": "on",
            "ssl_cert_file": data / cert.name,
            "ssl_key_file": data / key.name,
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        serve = [*become, server, "-D", str(data / "db"), *options]
        with (
            (data / "log").open("wb") as log,
            running_process(redis, ports.redis),
            running_process(serve, ports.postgres, cwd=data, stderr=log),
        ):
            yield ports
    finally:
        shutil.rmtree(data, ignore_errors=True)


def config(folder: Path, pki: Pki, ports: Databases, binds: dict[str, int]) -> str:
    """One listener for each way."""
    cert, key = pki.issue("db.example.test", "redis.example.test", "localhost", "127.0.0.1")
    shown = f'certificates = [{{ cert = "{cert}", key = "{key}" }}]'
    listeners = {
        "redis-plain": 'upstream = "redis"',
        "redis-ended": f'upstream = "redis"\n[listeners.redis-ended.tls]\n{shown}\nalpn = []',
        "redis-passed": 'sni = { "redis.example.test" = "redis-tls" }',
        "postgres-plain": 'upstream = "postgres"',
        "postgres-ended": f'upstream = "postgres"\nstarttls = "postgres"\n[listeners.postgres-ended.tls]\n{shown}',
        "postgres-both": f'upstream = "postgres-tls"\nstarttls = "postgres"\n[listeners.postgres-both.tls]\n{shown}',
        "postgres-passed": 'starttls = "postgres"\nsni = { "db.example.test" = "postgres" }',
    }
    tables = "".join(
        f'[listeners.{name}]\nprotocol = "tcp"\nbind = ["127.0.0.1:{binds[name]}"]\n{more}\n'
        for name, more in listeners.items()
    )
    return f"""{head_of(folder)}
{tables}
[upstreams.redis]
endpoints = ["127.0.0.1:{ports.redis}"]
[upstreams.redis-tls]
endpoints = ["127.0.0.1:{ports.redis_tls}"]
[upstreams.postgres]
endpoints = ["127.0.0.1:{ports.postgres}"]
[upstreams.postgres-tls]
endpoints = ["127.0.0.1:{ports.postgres}"]
[upstreams.postgres-tls.tls]
ca = "{pki.ca}"
name = "db.example.test"
"""


def is_of(listener: str, line: Json) -> bool:
    """Whether the line is of this listener."""
    return bool(line["listener"] == listener)


async def test_redis_and_postgres_work_plain_ended_and_passed_through(
    tmp_path: Path, pki: Pki, databases: Databases
) -> None:
    ways = ("plain", "ended", "passed")
    binds = {f"{kind}-{way}": next_port() for kind in ("redis", "postgres") for way in ways}
    binds["postgres-both"] = next_port()
    async with running(tmp_path, config(tmp_path, pki, databases, binds)) as gateway:
        for way in ways:
            call = ["redis-cli", "-h", "127.0.0.1", "-p", str(binds[f"redis-{way}"])]
            if way != "plain":
                call += ["--tls", "--cacert", str(pki.ca), "--sni", "redis.example.test"]
            assert (await run(*call, "set", "k", way)).strip() == "OK"
            assert (await run(*call, "get", "k")).strip() == way
            large = "x" * 100_000
            assert (await run(*call, "-x", "set", "large", stdin=large.encode())).strip() == "OK"
            assert len((await run(*call, "get", "large")).strip()) == len(large)
        for way in (*ways, "both"):
            mode = "sslmode=disable" if way == "plain" else f"sslmode=verify-full sslrootcert={pki.ca}"
            host = "host=db.example.test hostaddr=127.0.0.1"
            call = ["psql", f"{host} port={binds[f'postgres-{way}']} user=ada dbname=postgres {mode}", "-tA"]
            query = "select md5(string_agg(n::text, ',')), max(n) from generate_series(1, 100000) n"
            said = await run(*call, "-c", query)
            assert said.strip().endswith("|100000")
            if way != "plain":
                assert "TLSv1.3" in await run(*call, "-c", "\\conninfo")
            # What PostgreSQL itself sees of TLS: the client's own where it passes, ours where it is ended and begun.
            seen = await run(*call, "-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert seen.strip() == ("t" if way in ("passed", "both") else "f")
        for name in binds:
            await gateway.access_line(partial(is_of, name))
        where = f"host=127.0.0.1 port={binds['postgres-ended']}"
        clear = f"{where} user=ada dbname=postgres sslmode=disable"
        assert "reached by TLS only" in await run("psql", clear, "-c", "select 1", code=2)
        refused = await gateway.access_line(lambda line: line["reason"] == "tls_refused")
        assert refused["detail"] == "StartupMessage without TLS"
        lines = gateway.access_lines()
        assert {line["listener"] for line in lines} == set(binds)
        # PostgreSQL does not read the client's close_notify, so where that passes it comes to a reset.
        others = [line for line in lines if line["listener"] != "postgres-passed" and line["reason"] != "ok"]
        assert [line["reason"] for line in others] == ["tls_refused"]
        ended = [line for line in lines if line["listener"].endswith(("ended", "both")) and line["reason"] == "ok"]
        assert all(line["tls"].startswith("TLSv1.3") for line in ended)

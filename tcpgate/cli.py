"""The command line: `tcpgate run CONFIG` and everything an operator types.

Exit 0 done, 1 the thing asked failed, 2 usage, 78 bad config (EX_CONFIG of sysexits.h). Every command takes `--json`; those that
talk to a running gateway take `--admin ADDR`. Results go to stdout, problems to stderr.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio

from tcpgate import table
from tcpgate.client import AdminClient, AdminError, find
from tcpgate.config.diff import diff as diff_configs
from tcpgate.config.export import dump
from tcpgate.config.json_schema import json_schema
from tcpgate.errors import ConfigError

EXIT_FAILED, EXIT_CONFIG = 1, 78


def say(document: Any, text: Callable[[], str], as_json: bool) -> None:
    """Print for a person, or as JSON for a program."""
    click.echo(json.dumps(document, indent=2) if as_json else text())


def fail(text: str, code: int = EXIT_FAILED) -> None:
    """Say what went wrong, and leave."""
    click.echo(text, err=True)
    sys.exit(code)


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def with_admin(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--admin` and `--json`; the command gets an `AdminClient`, and its AdminError becomes exit 1."""

    @click.option("--admin", metavar="ADDR", help="host:port or unix:/path of the gateway's admin API.")
    @click.option("--token-file", type=click.Path(), envvar="TCPGATE_TOKEN_FILE", help="File with the admin token.")
    @with_json
    @functools.wraps(command)
    def wrapped(*args: Any, admin: str | None, token_file: str | None, **kwargs: Any) -> None:
        try:
            command(find(admin, token_file), *args, **kwargs)
        except (AdminError, OSError) as exc:
            fail(f"tcpgate: {exc}")

    return wrapped


def load_or_fail(path: str, as_json: bool = False) -> Any:
    """The loaded config, or every problem and exit 78."""
    from tcpgate.process.boot import load_config

    try:
        return load_config(Path(path), os.environ)
    except ConfigError as exc:
        if as_json:
            click.echo(json.dumps({"ok": False, "problems": [str(problem) for problem in exc.problems]}, indent=2))
        else:
            for problem in exc.problems:
                click.echo(str(problem), err=True)
            count = len(exc.problems)
            click.echo(f"{path}: {count} problem{'s' if count > 1 else ''}; nothing was changed", err=True)
        sys.exit(EXIT_CONFIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tcpgate")
def main() -> None:
    """A highly available L4/L7 proxy and API gateway."""


@main.command()
@click.argument("config", type=click.Path())
def run(config: str) -> None:
    """Serve CONFIG until a signal says stop. HUP reloads, TERM drains, USR1 reopens logs."""
    from tcpgate.process.boot import run_gateway

    try:
        code = run_gateway(Path(config), os.environ)
    except ConfigError as exc:
        for problem in exc.problems:
            click.echo(str(problem), err=True)
        sys.exit(EXIT_CONFIG)
    sys.exit(code)


@main.command()
@click.argument("config", type=click.Path())
@with_json
def check(config: str, as_json: bool) -> None:
    """Say everything that is wrong with CONFIG; exit 78 if it cannot serve."""
    loaded = load_or_fail(config, as_json)
    warnings = [str(warning) for warning in loaded.warnings]
    counts = f"{len(loaded.config.listeners)} listeners, {len(loaded.config.routes)} routes, {len(loaded.config.upstreams)} upstreams"
    say(
        {"ok": True, "warnings": warnings, "config": dump(loaded.config)},
        lambda: "\n".join([*warnings, f"{config}: good: {counts}"]),
        as_json,
    )


@main.command()
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@with_json
def diff(old: str, new: str, as_json: bool) -> None:
    """What a reload from OLD to NEW would touch: listeners, connections, pools, probes."""
    changes = diff_configs(load_or_fail(old, as_json).config, load_or_fail(new, as_json).config)
    lines = changes.describe()
    say({"empty": changes.empty, "changes": lines}, lambda: "\n".join(lines) or "nothing would change", as_json)


@main.command()
@with_json
def schema(as_json: bool) -> None:
    """The JSON Schema of the config, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.option(
    "--wait/--no-wait", default=True, help="Wait for the result (the default), or only for the signal to be taken."
)
@with_admin
def reload(admin: AdminClient, wait: bool, as_json: bool) -> None:
    """Read the config again and make it serve; exit 1 and say why if it does not."""
    if not wait:
        admin.call("POST", "/api/v1/reload?wait=false")
        return
    code, result = admin.ask("POST", "/api/v1/reload")
    if code not in (200, 422):
        raise AdminError(str(result.get("detail", f"status {code}")))
    say(
        result,
        lambda: "\n".join([*result["problems"], *result["warnings"], *result["changes"], result["summary"]]),
        as_json,
    )
    if not result["ok"]:
        sys.exit(EXIT_FAILED)


@main.command()
@with_admin
def status(admin: AdminClient, as_json: bool) -> None:
    """The running gateway at a glance."""
    now = admin.call("GET", "/api/v1/status")

    def text() -> str:
        state = "stopping" if now["stopping"] else "ready" if now["ready"] else "starting"
        up = now["endpoints"]
        lines = [
            f"tcpgate {now['version']}, pid {now['pid']}, up {now['uptime_seconds']:.0f} s: {state}, generation {now['generation']}",
            f"endpoints: {up['up']} of {up['total']} up",
            *([f"last reload: {now['last_reload']['summary']}"] if now["last_reload"] else []),
            *now["warnings"],
            table.render(
                now["workers"], ("index", "pid", "generation", "connections", "exchanges", "lag_us", "log_dropped")
            ),
        ]
        return "\n".join(lines)

    say(now, text, as_json)


@main.command()
@click.argument("config", type=click.Path(), required=False)
@with_admin
def routes(admin: AdminClient, config: str | None, as_json: bool) -> None:
    """Routes in the order in which they are tried: of CONFIG, or of the running gateway."""
    rows: list[dict[str, Any]]
    if config is not None:
        import attrs

        from tcpgate.control.api import table_of
        from tcpgate.policy.route_order import order

        rows = [attrs.asdict(row) for row in order(table_of(load_or_fail(config, as_json).config))]
    else:
        rows = admin.call("GET", "/api/v1/routes")
    columns = ("route", "listener", "host", "path", "methods", "conditions", "target", "filters", "reason")
    say(rows, lambda: table.render(rows, columns), as_json)


@main.command()
@click.argument("name", required=False)
@with_admin
def upstreams(admin: AdminClient, name: str | None, as_json: bool) -> None:
    """Endpoints with state, weight, what is in flight, and why."""
    found = admin.call("GET", "/api/v1/upstreams" + (f"/{urllib.parse.quote(name, safe='')}" if name else ""))
    rows = [
        {"upstream": one["name"], **endpoint} for one in ([found] if name else found) for endpoint in one["endpoints"]
    ]
    columns = ("upstream", "endpoint", "state", "weight", "tier", "active", "answers_good", "answers_bad", "cause")
    say(found, lambda: table.render(rows, columns), as_json)


def _put(admin: AdminClient, endpoint: str, wish: dict[str, Any], as_json: bool) -> None:
    upstream, slash, address = endpoint.partition("/")
    if not slash:
        raise AdminError(f"{endpoint!r} names no endpoint; write it as UPSTREAM/ENDPOINT, such as api/10.0.0.1:8080")
    quoted = urllib.parse.quote(upstream, safe=""), urllib.parse.quote(address, safe="")
    now = admin.call("PUT", "/api/v1/upstreams/{}/endpoints/{}".format(*quoted), wish)
    say(
        now,
        lambda: f"{upstream}/{address}: {now['state']}, weight {now['weight']:g}, {now['active']} in flight",
        as_json,
    )


@main.command()
@click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
@with_admin
def drain(admin: AdminClient, endpoint: str, as_json: bool) -> None:
    """Let an endpoint finish what it has and give it nothing new."""
    _put(admin, endpoint, {"state": "drain"}, as_json)


@main.command()
@click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
@with_admin
def ready(admin: AdminClient, endpoint: str, as_json: bool) -> None:
    """Give an endpoint back to its health checks."""
    _put(admin, endpoint, {"state": "ready"}, as_json)


@main.command()
@click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
@with_admin
def maint(admin: AdminClient, endpoint: str, as_json: bool) -> None:
    """Take an endpoint out for maintenance: no traffic, no probes."""
    _put(admin, endpoint, {"state": "maint"}, as_json)


@main.command()
@click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
@click.argument("weight", type=click.IntRange(0, 256))
@with_admin
def weight(admin: AdminClient, endpoint: str, weight: int, as_json: bool) -> None:
    """Set an endpoint's weight until the next restart; the config's is untouched."""
    _put(admin, endpoint, {"weight": weight}, as_json)


@main.command()
@click.option("--since", type=int, default=0, help="Only events after this sequence number.")
@click.option("--limit", type=int, default=50, show_default=True)
@with_admin
def events(admin: AdminClient, since: int, limit: int, as_json: bool) -> None:
    """What happened, oldest first."""
    found = admin.call("GET", f"/api/v1/events?since={since}&limit={limit}")
    say(found, lambda: table.render(found, ("seq", "time", "level", "kind", "text"), empty="no events"), as_json)


@main.command()
@click.argument("config", type=click.Path(), required=False)
def demo(config: str | None) -> None:
    """Serve a small config (CONFIG, or the one that comes along) with three origins of our own, and say what to try."""
    from tcpgate.demo import quickstart, serve_origins
    from tcpgate.process.boot import run_gateway

    async def origins(nursery: trio.Nursery) -> None:
        await nursery.start(serve_origins)
        click.echo(WHAT_TO_TRY.format(config=path), err=True)

    path = Path(config) if config else quickstart()
    try:
        sys.exit(run_gateway(path, os.environ, origins))
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)
    except OSError as exc:
        fail(f"tcpgate demo: the origins cannot listen on 127.0.0.1:9001 to 9003: {exc}")


WHAT_TO_TRY = """\
Three origins on 127.0.0.1:9001 to 9003 behind a gateway, from {config}. In another terminal:

  curl -i http://127.0.0.1:8080/                       which origin answered, and what it was sent
  curl -X POST http://127.0.0.1:9002/ill               make one fail its health checks; /well heals it
  .venv/bin/tcpgate upstreams --admin 127.0.0.1:9901   who is up, who is not, and why
  .venv/bin/tcpgate events --admin 127.0.0.1:9901      what happened

Ctrl-C stops it. Its log follows, one JSON object a line.
"""

if __name__ == "__main__":
    main()

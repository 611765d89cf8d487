"""The command line: `tcpgate run CONFIG` and everything an operator types.

Exit 0 done, 1 the thing asked failed, 2 usage, 78 bad config (EX_CONFIG of sysexits.h). Every command takes `--json`;
those that talk to a running gateway take `--admin ADDR`. Results go to stdout, problems to stderr.

What only one command needs is imported there: `tcpgate status` must not load the whole gateway.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import tomli

from tcpgate import table
from tcpgate.client import DEFAULTS, AdminClient, AdminError, find, patience, read_token, refusal
from tcpgate.errors import ConfigError
from tcpgate.glance import glance

EXIT_FAILED, EXIT_CONFIG = 1, 78
INSTALLED = Path("/etc/tcpgate/tcpgate.toml")
"""The config of the service that `make install` sets up: its [admin] says where the gateway of this host is asked."""
ADMIN_HELP = (
    "The gateway's admin API, as host:port or unix:/path. Default: that of the installed config, else "
    f"{DEFAULTS[0]}, else {DEFAULTS[1]}."
)
TOKEN_HELP = "File with the admin token, if the API wants one. Default: $TCPGATE_TOKEN_FILE."

Row = dict[str, Any]


# -- what every command does the same way ---------------------------------------------------------------------------


def say(document: Any, text: Callable[[], str], as_json: bool) -> None:
    """Print for a person, or as JSON for a program."""
    click.echo(json.dumps(document, indent=2) if as_json else text())


def fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    """Say what went wrong, and leave."""
    click.echo(text, err=True)
    sys.exit(code)


def screen() -> int | None:
    """Columns of the terminal; None if the output goes elsewhere, where nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def with_admin(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--admin` and `--json`; the command gets an `AdminClient`, and its AdminError becomes exit 1."""

    @click.option("--admin", metavar="ADDR", help=ADMIN_HELP)
    @click.option("--token-file", metavar="FILE", envvar="TCPGATE_TOKEN_FILE", help=TOKEN_HELP)
    @with_json
    @functools.wraps(command)
    def wrapped(*args: Any, admin: str | None, token_file: str | None, **kwargs: Any) -> None:
        try:
            command(client(admin, token_file), *args, **kwargs)
        except AdminError as exc:
            fail(f"tcpgate: {exc}")

    return wrapped


def client(admin: str | None, token_file: str | None) -> AdminClient:
    """Whom to ask: what the command line says, else the installed config, else the places where gateways usually
    are."""
    token = read_token(token_file) if token_file else None
    if admin is not None:
        return find([admin], token)
    bind, configured = installed_admin()
    places = [bind, *DEFAULTS] if bind else list(DEFAULTS)
    return find(list(dict.fromkeys(places)), token or configured)


def installed_admin() -> tuple[str | None, str | None]:
    """Address and token of the installed config. A config that is broken at the moment still says where it is asked."""
    if not os.access(INSTALLED, os.R_OK):
        return None, None
    from tcpgate.config.load import load
    from tcpgate.process.systemd import credentials_directory

    try:
        credentials = credentials_directory(os.environ)
        config = load(INSTALLED, environ=os.environ, credentials=credentials).config.admin
        return config.bind, config.token.reveal() if config.token else None
    except ConfigError:
        return _rough_admin()


def _rough_admin() -> tuple[str | None, str | None]:
    try:
        admin = tomli.loads(INSTALLED.read_text())["admin"]
        token_file = admin.get("token_file")
        return str(admin["bind"]), read_token(token_file) if token_file else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AdminError):
        return None, None


def load_or_fail(path: str, as_json: bool = False) -> Any:
    """The loaded config, or every problem and exit 78."""
    from tcpgate.process.boot import load_config

    try:
        with patience(f"reading {path}"):
            return load_config(Path(path), os.environ)
    except ConfigError as exc:
        if as_json:
            click.echo(json.dumps({"ok": False, "problems": [str(problem) for problem in exc.problems]}, indent=2))
        else:
            refuse(path, exc)
        sys.exit(EXIT_CONFIG)


def refuse(path: str, exc: ConfigError) -> None:
    """Every problem on a line of its own, then how many there are."""
    for problem in exc.problems:
        click.echo(str(problem), err=True)
    errors = sum(not problem.warning for problem in exc.problems)
    click.echo(f"{path}: {_count(errors, 'problem')}; it cannot serve", err=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- without a gateway ----------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tcpgate")
def main() -> None:
    """A highly available L4/L7 proxy and API gateway.

    Try `demo`, write a config, `check` it, `run` it. Exit 0 done, 1 the thing asked failed, 2 usage, 78 bad config.
    """


@main.command()
@click.argument("config", type=click.Path())
def run(config: str) -> None:
    """Serve CONFIG until told to stop. HUP reloads, TERM and INT drain and stop (twice: now), USR1 reopens logs."""
    from tcpgate.process.boot import run_gateway

    try:
        code = run_gateway(Path(config), os.environ)
    except ConfigError as exc:
        refuse(config, exc)
        sys.exit(EXIT_CONFIG)
    except Exception as exc:  # the log has the trace; a person at a terminal gets a sentence too
        logging.getLogger("tcpgate.cli").exception("the gateway failed")
        fail(f"tcpgate: a bug ended the gateway: {exc!r}; the trace stands above")
    sys.exit(code)


@main.command()
@click.argument("config", type=click.Path())
@with_json
def check(config: str, as_json: bool) -> None:
    """Say what is wrong with CONFIG, and where. Exit 78 if it cannot serve."""
    from tcpgate.config.export import dump

    loaded = load_or_fail(config, as_json)
    warnings = [str(warning) for warning in loaded.warnings]
    tables = ("listeners", "routes", "upstreams")
    counts = ", ".join(_count(len(getattr(loaded.config, name)), name.removesuffix("s")) for name in tables)
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
    """Say what a reload would touch. OLD and NEW are configs; no gateway is asked."""
    from tcpgate.config.diff import diff as compare

    changes = compare(load_or_fail(old, as_json).config, load_or_fail(new, as_json).config)
    lines = changes.describe()
    say({**changes.as_json(), "text": lines}, lambda: "\n".join(lines) or "nothing would change", as_json)


@main.command()
@with_json
def schema(as_json: bool) -> None:
    """Print the config's JSON Schema, for editors."""
    from tcpgate.config.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


# -- asking a gateway -----------------------------------------------------------------------------------------------


@main.command()
@click.option("--wait/--no-wait", default=True, help="Wait for the result (the default), or only ask for it.")
@with_admin
def reload(admin: AdminClient, wait: bool, as_json: bool) -> None:
    """Read the config again and make it serve. Exit 1, and why, if it cannot."""
    if not wait:
        taken = admin.call("POST", "/api/v1/reload?wait=false")
        say(taken, lambda: "asked for; `tcpgate status` has the result", as_json)
        return
    with patience("reloading: every worker builds the new config beside the old one"):
        code, result = admin.ask("POST", "/api/v1/reload")
    if code not in (200, 422):
        raise AdminError(refusal(code, result))
    if result["ok"] or as_json:
        say(result, lambda: "\n".join([*result["warnings"], *result["changes"], result["summary"]]), as_json)
    else:
        fail("\n".join([*result["problems"], f"reload failed, generation {result['generation']} goes on"]))
    sys.exit(0 if result["ok"] else EXIT_FAILED)


@main.command()
@with_admin
def status(admin: AdminClient, as_json: bool) -> None:
    """Show the running gateway at a glance."""
    now = admin.call("GET", "/api/v1/status")
    say(now, lambda: "\n".join(glance(now, screen())), as_json)


@main.command()
@click.argument("config", type=click.Path(), required=False)
@with_admin
def routes(admin: AdminClient, config: str | None, as_json: bool) -> None:
    """List routes in the order they are tried. Those of CONFIG, or of the running gateway."""
    rows: list[Row]
    if config is not None:
        import attrs

        from tcpgate.control.api import table_of
        from tcpgate.policy.route_order import order

        rows = [attrs.asdict(row) for row in order(table_of(load_or_fail(config, as_json).config))]
    else:
        rows = admin.call("GET", "/api/v1/routes")
    columns = ("route", "listener", "host", "path", "methods", "conditions", "target", "filters", "exchanges", "reason")
    may_hide = ("host", "methods", "conditions", "filters", "exchanges")
    say(rows, lambda: table.render(rows, columns, width=screen(), may_hide=may_hide, empty="no routes"), as_json)


@main.command()
@click.argument("name", required=False)
@with_admin
def upstreams(admin: AdminClient, name: str | None, as_json: bool) -> None:
    """List endpoints with their state, and why. All of them, or those of upstream NAME."""
    found = admin.call("GET", "/api/v1/upstreams" + (f"/{urllib.parse.quote(name, safe='')}" if name else ""))
    rows = [_endpoint_row(one["name"], two) for one in ([found] if name else found) for two in one["endpoints"]]
    columns = ("upstream", "endpoint", "state", "for", "weight", "tier", "active", "good", "bad", "reuse", "cause")
    hide, empty = ("tier", "reuse"), "no upstreams"
    say(found, lambda: table.render(rows, columns, width=screen(), may_hide=hide, empty=empty), as_json)


def _endpoint_row(upstream: str, one: Row) -> Row:
    # Refused connects are failures that an operator looks for in the same place as bad answers.
    bad = one["answers_bad"] + one["connect_failures"]
    more = {"for": table.span(one["lasting"]), "good": one["answers_good"], "bad": bad, "tier": one["tier"] or None}
    return {**one, "upstream": upstream, "reuse": table.percent(one["reuse_ratio"]), **more}


def _put(admin: AdminClient, endpoint: str, wish: Row, as_json: bool) -> None:
    upstream, slash, address = endpoint.partition("/")
    if not (upstream and slash and address):
        raise AdminError(f"{endpoint!r} names no endpoint; write it as UPSTREAM/ENDPOINT, such as api/10.0.0.1:8080")
    quoted = urllib.parse.quote(upstream, safe=""), urllib.parse.quote(address, safe="")
    now = admin.call("PUT", "/api/v1/upstreams/{}/endpoints/{}".format(*quoted), wish)
    more = f", {now['active']} in flight" if now["active"] else ""
    say(now, lambda: f"{upstream}/{address}: {now['state']}, weight {now['weight']:g}{more}", as_json)


STATES = {
    "drain": "Give an endpoint no new work. What it has may finish, and probes go on.",
    "ready": "Undo drain or maint. The endpoint's checks decide again; after maint it is down until one succeeds.",
    "maint": "Take an endpoint out: no new work, no probes. `ready` gives it back.",
}


def _state_command(state: str, does: str) -> click.Command:
    @click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
    @with_admin
    def command(admin: AdminClient, endpoint: str, as_json: bool) -> None:
        _put(admin, endpoint, {"state": state}, as_json)

    return click.command(state, help=does)(command)


for _state, _does in STATES.items():
    main.add_command(_state_command(_state, _does))


@main.command()
@click.argument("endpoint", metavar="UPSTREAM/ENDPOINT")
@click.argument("weight", metavar="N")
@with_admin
def weight(admin: AdminClient, endpoint: str, weight: str, as_json: bool) -> None:
    """Set an endpoint's share until a restart. N is 0 (no new work) to 256, or "config" for the config's own weight."""
    if weight != "config" and not (weight.isascii() and weight.isdecimal() and int(weight[:9]) <= 256):
        raise click.BadParameter(f'{weight!r} is no weight: write a number from 0 to 256, or "config"')
    _put(admin, endpoint, {"weight": None if weight == "config" else int(weight)}, as_json)


@main.command()
@click.option("--since", type=click.IntRange(0), default=0, help="Only events after this sequence number.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The last N events.")
@with_admin
def events(admin: AdminClient, since: int, limit: int, as_json: bool) -> None:
    """List what happened, oldest first. Times are UTC."""
    found = admin.call("GET", f"/api/v1/events?since={since}&limit={limit}")
    rows = [{**event, "time": event["time"].replace("T", " ").removesuffix("+00:00")} for event in found]
    # The text is what one came for, so a long one is not cut but goes on in the next line.
    say(found, lambda: table.render(rows, ("seq", "time", "level", "text"), empty="no events"), as_json)


# -- the demo -------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("config", type=click.Path(), required=False)
def demo(config: str | None) -> None:
    """Start a gateway and three origins behind it. CONFIG takes the place of etc/quickstart.toml."""
    import trio

    from tcpgate.demo import quickstart, serve_origins, what_to_try
    from tcpgate.process.boot import run_gateway

    async def origins(nursery: trio.Nursery) -> None:
        await nursery.start(serve_origins)
        click.echo(what_to_try(path, os.environ), err=True)

    path = Path(config) if config else quickstart()
    try:
        code = run_gateway(path, os.environ, origins)
    except ConfigError as exc:
        refuse(str(path), exc)
        sys.exit(EXIT_CONFIG)
    except OSError as exc:
        fail(f"tcpgate demo: the origins cannot listen on 127.0.0.1:9001 to 9003: {exc.strerror}")
    else:
        sys.exit(code)


if __name__ == "__main__":
    main()

"""A config file, its includes, the environment and the secrets, made into a `Config`; or every problem at once.

The order: read and merge the files, put the environment into strings, structure, fetch secrets and certificates, check
the whole. A step works on what the one before could make sense of, so one bad table hides no other's problems.

Does I/O by reading only, and never blocks on what is not a regular file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

import attrs

from tcpgate.config import schema, validators
from tcpgate.config.check import World, check
from tcpgate.config.expand import Environment
from tcpgate.config.pem import Files
from tcpgate.config.report import AnyName, KeyPath, Report, dotted, printable
from tcpgate.config.source import NAMED_TABLES, Sources, read_text, read_tree
from tcpgate.config.structure import structure
from tcpgate.errors import ConfigError, Problem

MAX_PROBLEMS = 1000
MAX_SECRET = 64 << 10
"""Bytes in a file that holds a secret; systemd allows a credential 1 MiB, a token needs 50."""
MIN_TOKEN = 16
"""Characters: 64 bits, if they are random hexadecimal digits."""
_TOKEN = re.compile(r"[!-~]+")  # RFC 6750 2.1 has fewer; what matters is that a header field can carry it


@attrs.frozen(kw_only=True)
class Loaded:
    """A config that is right in itself, and where its parts came from."""

    config: schema.Config
    warnings: list[Problem]
    sources: Sources
    """Gives the file and line of any key path, for problems found later."""
    files: Files | None = None
    """The files that the config names, to be read again when they change."""


def load(
    path: str | Path,
    *,
    environ: Mapping[str, str],
    credentials: str | Path | None,
    world: World | None = None,
) -> Loaded:
    """The config that starts at `path`, checked as a whole. Raises ConfigError with every problem.

    `environ` is what `${NAME}` reads, `credentials` is systemd's $CREDENTIALS_DIRECTORY; with a `world` (`host.py`) the
    config is held against the host as well: programs, folders, the limit of open files.
    """
    sources, tree, problems = read_tree(Path(path), environ)
    report = Report(sources.where, problems)
    structured = structure(Environment(environ, report).tree(tree), report)
    folder = None if credentials is None else Path(credentials)
    config = _with_token(structured.config, sources, folder, report)
    files = Files(bare=config, sources=sources, credentials=folder, user="" if world is None else world.user)
    config = files.read(report).config
    failed = bool(report.errors)
    # A file that cannot be read may hold any name.
    broken = {table: AnyName() for table in NAMED_TABLES} if sources.broken else structured.broken
    found = check(config, world=world, where=sources.where, broken=broken, salvaged=structured.salvaged)
    # What a broken table or file would have used is unknown, so after an error a warning might be false.
    muted = {dotted(at) for at in report.muted}
    problems += [problem for problem in found if problem.path not in muted and not (failed and problem.warning)]
    order = {file.name: index for index, file in enumerate(sources.files)}
    report.problems.sort(key=lambda problem: (order.get(problem.file, len(order)), problem.line))
    if report.errors:
        raise ConfigError(
            _cut(report.errors + report.warnings if len(report.problems) > MAX_PROBLEMS else report.problems)
        )
    return Loaded(config=config, warnings=report.warnings, sources=sources, files=files)


def _cut(problems: list[Problem]) -> list[Problem]:
    """The problems, or as many as anybody will read, and how many more there are."""
    more = len(problems) - MAX_PROBLEMS
    if more <= 0:
        return problems
    return [*problems[:MAX_PROBLEMS], Problem(file=problems[0].file, line=0, path="", text=f"and {more} more problems")]


def _with_token(config: schema.Config, sources: Sources, credentials: Path | None, report: Report) -> schema.Config:
    """`config` with the admin's token read from its file."""
    name, at = config.admin.token_file, ("admin", "token_file")
    if name is None:
        return config
    try:
        token = _read_token(name, sources.resolve(at, name), credentials, at, report)
    except (ConfigError, ValueError) as exc:
        report.error(at, str(exc))
        return config
    return attrs.evolve(config, admin=attrs.evolve(config.admin, token=validators.Secret(token)))


def _read_token(name: str, path: Path, credentials: Path | None, at: KeyPath, report: Report) -> str:
    """The first line of the file or credential `name`; ValueError or ConfigError says why there is none."""
    if name.startswith("credential:"):
        if credentials is None:
            raise ValueError("there are no credentials here: systemd's LoadCredential= sets $CREDENTIALS_DIRECTORY")
        path = credentials / name.removeprefix("credential:")
    text = read_text(path, printable(str(path)), MAX_SECRET)
    token = text.partition("\n")[0].strip()
    if not _TOKEN.fullmatch(token):
        state = "has spaces or unprintable characters in its first line" if token else "has an empty first line"
        raise ValueError(f"{printable(str(path))} {state}; it must hold the token alone")
    if len(token) < MIN_TOKEN:
        cure = "`openssl rand -hex 32` makes a better one"
        report.warn(at, f"the token has {len(token)} characters only, so it can be guessed; {cure}")
    if path.stat().st_mode & stat.S_IROTH:
        report.warn(at, f"every user of this host can read {printable(str(path))}; chmod 600 keeps it secret")
    return token

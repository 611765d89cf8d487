"""From files to one tree of TOML values, with the place of everything kept. The only I/O is reading.

A config is one file and those that it includes, and theirs. Each named table (`upstreams.api`) and each single one
(`gateway`) comes whole from one file: the same name twice is an error that shows both places, never a silent merge.

Source: TOML 1.0; nginx's `include` for globs in sorted order.
"""

from __future__ import annotations

import glob
import stat
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import tomli

from tcpgate.config import locate, schema
from tcpgate.config.expand import Environment
from tcpgate.config.report import KeyPath, Report, printable, quoted
from tcpgate.errors import ConfigError, Problem

MAX_SIZE = 16 << 20
"""Bytes in one file: fifty times the largest config that people are known to write by machine."""
MAX_DEPTH = 8
"""Files on the way from the first to an included one; nobody can follow more."""
SINGLE_TABLES = ("gateway", "admin", "log")
NAMED_TABLES = tuple(field.name for field in attrs.fields(schema.Config) if field.name not in SINGLE_TABLES)

Table = dict[str, Any]


@attrs.frozen(kw_only=True, slots=False)  # cached_property needs a __dict__
class File:
    """One file of the config, read and parsed."""

    name: str
    """For people: as the user wrote it, or as the including file's folder and the pattern lead to it."""
    folder: Path
    """That of the name: what the file includes is relative to it."""
    path: Path
    """Where it really is, links resolved."""
    text: str
    tree: Table

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        """The line of each key path; found only when a problem asks."""
        return locate.lines(self.text)


@attrs.define
class Sources:
    """The files of one config, in reading order, and which of them each table came from."""

    files: list[File] = attrs.field(factory=list)
    owners: dict[KeyPath, File] = attrs.field(factory=dict)
    broken: list[Path] = attrs.field(factory=list)
    """Files that could not be read or parsed, so nobody knows which names they would have held."""

    def owner(self, path: KeyPath) -> File:
        """The file in which `path` stands; the first one where no file has it."""
        return self.owners.get(path[:2]) or self.owners.get(path[:1]) or self.files[0]

    def where(self, path: KeyPath) -> tuple[str, int]:
        """File name and line of `path`, or of the nearest thing around it."""
        file = self.owner(path)
        return file.name, locate.line_of(file.lines, path)

    def resolve(self, path: KeyPath, name: str) -> Path:
        """The file called `name` at `path`: relative to the folder of the config file that names it."""
        return self.owner(path).folder / name


def read_tree(first: Path, variables: Mapping[str, str]) -> tuple[Sources, Table, list[Problem]]:
    """Every file of the config that starts at `first`, merged. The problems leave out what they are about.

    `variables` are for references in `include`; all other strings are expanded later.

    Raises ConfigError if not even `first` can be read.
    """
    sources = Sources()
    reader = _Reader(sources, variables)
    reader.read(first, ())
    if not sources.files:
        raise ConfigError(reader.problems)
    if not sources.files[0].tree and not reader.problems:
        text = 'is empty; it needs at least one listener: [listeners.NAME] with bind = ["0.0.0.0:80"]'
        raise ConfigError([Problem(file=sources.files[0].name, line=0, path="", text=text)])
    report = Report(sources.where)
    tree = _merged(sources, report)
    return sources, tree, reader.problems + report.problems


def read_text(path: Path, name: str, limit: int = MAX_SIZE) -> str:
    """The text of a regular file. Raises ConfigError, with the line where a byte is not UTF-8."""
    data = read_bytes(path, name, limit)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(name, "is UTF-16; save it as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        raise _unreadable(name, "starts with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise _unreadable(name, f"is not UTF-8: byte 0x{data[exc.start]:02x} at offset {exc.start}", line) from None


def read_bytes(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Never blocks on a FIFO: it looks before it opens.

    Raises ConfigError; its `__context__` is the OSError, if there was one.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _unreadable(name, "is a directory, not a file")
        if not stat.S_ISREG(mode):
            raise _unreadable(name, "is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise _unreadable(name, "does not exist") from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL byte in the name
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise _unreadable(name, f"cannot be read: {reason}") from None
    if len(data) > limit:
        raise _unreadable(name, f"is larger than {limit >> 10} KiB; this is hardly meant to be read here")
    return data


def _unreadable(name: str, text: str, line: int = 0) -> ConfigError:
    return ConfigError([Problem(file=name, line=line, path="", text=text)])


def _parse(text: str, name: str) -> Table:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as exc:
        problem = Problem(file=name, line=exc.lineno, path="", text=f"{_lowered(exc.msg)}, {_spot(exc)}")
    except RecursionError:
        problem = Problem(file=name, line=0, path="", text="is nested too deeply to be a config")
    except ValueError as exc:  # an integer of more digits than Python converts
        problem = Problem(file=name, line=0, path="", text=f"is not a config: {exc}")
    raise ConfigError([problem])


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _spot(exc: tomli.TOMLDecodeError) -> str:
    """Where in its line the parser stopped: `column 6, just before "0.0.0.0:80"`."""
    rest = exc.doc[exc.pos :].partition("\n")[0].strip()
    return f"at column {exc.colno}, " + (f"just before {quoted(rest)}" if rest else "at the end of the line")


@attrs.define
class _Reader:
    """Reads a file and, depth first, what it includes."""

    sources: Sources
    variables: Mapping[str, str]
    problems: list[Problem] = attrs.field(factory=list)
    seen: dict[Path, str] = attrs.field(factory=dict)
    """Real path -> the name by which it was read first."""

    def read(self, path: Path, chain: tuple[File, ...], by: str = "") -> None:
        """Add the file and its includes; `chain` is the way here from the first file, `by` the line that asks."""
        name = printable(str(path))
        try:
            text = read_text(path, name)
            file = File(name=name, folder=path.parent, path=path.resolve(), text=text, tree=_parse(text, name))
        except ConfigError as exc:
            included = f" (included by {by})" if by else ""
            self.problems += [attrs.evolve(problem, text=problem.text + included) for problem in exc.problems]
            self.sources.broken.append(path)
            return
        self.seen[file.path] = name
        self.sources.files.append(file)
        self.include(file, (*chain, file))

    def include(self, file: File, chain: tuple[File, ...]) -> None:
        """Read what `file` names under `include`."""
        report = Report(lambda path: (file.name, locate.line_of(file.lines, path)), self.problems)
        patterns = file.tree.get("include", [])
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            report.error(("include",), 'expected a list of file names, such as ["conf.d/*.toml"]')
            return
        if patterns and len(chain) > MAX_DEPTH:
            report.error(("include",), f"is more than {MAX_DEPTH} files deep: {_way(chain)}")
            return
        for index, text in enumerate(patterns):
            at = ("include", index)
            pattern = Environment(self.variables, report).text(text, at)
            for path in self.matches(file, pattern, at, report) if at not in report.muted else ():
                self.include_one(path, chain, at, report)

    def matches(self, file: File, pattern: str, at: KeyPath, report: Report) -> list[Path]:
        """The files that `pattern` means, sorted; relative to the folder of `file`."""
        if not glob.has_magic(pattern):
            return [file.folder / pattern]
        names = sorted(glob.glob(pattern, root_dir=file.folder))
        if not names:
            report.warn(at, f"no file matches {quoted(str(file.folder / pattern))}")
        return [file.folder / name for name in names]

    def include_one(self, path: Path, chain: tuple[File, ...], at: KeyPath, report: Report) -> None:
        """Read `path` unless it is on the way here already (an error) or was read elsewhere (said, not repeated)."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte: reading it will say so
            real = path
        here = printable(str(path))
        if any(file.path == real for file in chain):
            report.error(at, f"includes itself: {_way(chain)} -> {here}")
        elif real in self.seen:
            other = self.seen[real]
            name = "" if other == here else f", as {other}"
            report.warn(at, f"{here} is included already{name}; it is read once")
        else:
            self.read(path, chain, by=report.place(at))


def _way(chain: tuple[File, ...]) -> str:
    return " -> ".join(file.name for file in chain)


def _merged(sources: Sources, report: Report) -> Table:
    tree: Table = {}
    for file in sources.files:
        for table, value in file.tree.items():
            if table == "include":
                continue
            if table not in NAMED_TABLES or not isinstance(value, dict):
                _claim(sources, file, (table,), value, tree, report)
                continue
            names = tree.setdefault(table, {})
            for name, item in value.items():
                # Where another file has `upstreams = 3`, that is a problem of its own, told once.
                _claim(sources, file, (table, name), item, names if isinstance(names, dict) else {}, report)
    return tree


def _claim(sources: Sources, file: File, path: KeyPath, value: Any, into: Table, report: Report) -> None:
    """Put `value` at `path`, unless another file was there first."""
    if path in sources.owners:
        first = report.place(path)
        here = Report(lambda path: (file.name, locate.line_of(file.lines, path)), report.problems)
        what = "table" if path[0] in SINGLE_TABLES else "name"
        here.error(path, f"the same {what} is set in {first} already; one file must hold all of it")
        return
    sources.owners[path] = file
    into[str(path[-1])] = value

"""The shape of the code, held: which room imports which, what pure rooms keep out, how large and how told a file is.

Every rule is a function from a file's text to the lines that break it, so that each one is also shown to fail on a
snippet that breaks it. An exception to a rule stands in a table here with its reason; one that is no longer
needed fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcpgate"

# -- the tables -----------------------------------------------------------------------------------------------------

PURE = ("errors", "units", "stats", "config", "codec", "policy", "filters", "state")
ARROWS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "units": ("errors",),
    "stats": ("errors", "units"),
    "config": ("errors", "units"),
    "codec": ("errors", "units"),
    "policy": ("errors", "units", "stats", "config", "codec"),
    "filters": ("errors", "units", "stats", "config", "codec", "policy"),
    "state": ("errors", "units", "stats", "config", "codec", "policy", "filters"),
    "net": ("errors", "units", "codec"),
    "proxy": (*PURE, "net"),
    "control": (*PURE, "net"),
    "kinds": (*PURE, "net", "proxy", "control"),
    "process": (*PURE, "net", "proxy", "control", "kinds"),
    "demo": (),
    "table": (),
    "glance": ("table",),
    "client": ("errors", "units"),
    "cli": (*PURE, "net", "proxy", "control", "kinds", "process", "demo", "table", "glance", "client"),
}
"""Room -> the rooms that it may import, besides itself."""

# fmt: off
FORBIDDEN_IN_PURE_ROOMS = frozenset({
    "asyncio", "concurrent", "fcntl", "glob", "http.client", "http.server", "io", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "resource", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "socketserver", "ssl", "structlog", "subprocess", "sys", "tempfile", "threading", "time", "trio",
    "urllib.request",
})
# fmt: on
"""Modules through which the world comes in. Time is an argument (`now`), and so is chance (`random.Random`)."""
FORBIDDEN_CALLS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval"})
CLOCKS = frozenset({"now", "utcnow", "today"})

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("stats/page.py", "mmap"): "the page is memory that processes share; mapping it is all that it does with the world",
    ("config/source.py", "pathlib"): "reads the config's files",
    ("config/source.py", "glob"): "finds the files that `include` names",
    ("config/load.py", "pathlib"): "reads the files that hold secrets",
    ("config/pem.py", "pathlib"): "reads the files that hold certificates and keys",
    ("config/host.py", "pathlib"): "looks at the host for `check`: folders and programs that the config names",
    ("config/host.py", "os"): "asks whether this user may run them or write there",
    ("config/host.py", "ssl"): "asks OpenSSL which words of a cipher list it knows",
}
"""(file, module or rule) -> why it may."""

MAX_FILE = 400
MAX_FUNCTION = 60
LONGER_FILES: dict[str, str] = {
    "config/schema.py": "every key of the config in one place, two lines each; splitting it would hide the table",
}

MARKS = re.compile(r"\b(TODO|FIXME|XXX|HACK|WIP|NotImplementedError|NotImplemented(?=\())\b")


# -- reading --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Source:
    """One file of the package."""

    name: str
    """Path under tcpgate/, with slashes."""
    text: str

    @property
    def room(self) -> str:
        """The folder, or a lone module's own name; the package's map and `python -m` belong to the command line."""
        first = self.name.split("/")[0].removesuffix(".py")
        return "cli" if first in ("__init__", "__main__") else first

    @property
    def tree(self) -> ast.Module:
        """The file, parsed."""
        return ast.parse(self.text, self.name)


def sources() -> list[Source]:
    """Every Python file of the package."""
    return [Source(path.relative_to(PACKAGE).as_posix(), path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


# -- the rules: each gives (line, what is wrong) --------------------------------------------------------------------

Finding = tuple[int, str]


def arrows(source: Source) -> Iterator[Finding]:
    """Imports that point the wrong way."""
    if source.room not in ARROWS:
        yield 1, f"room {source.room!r} is not in the table ARROWS"
        return
    for line, name in imports(source.tree):
        if name.startswith("."):
            yield line, f"relative import {name}"
        parts = name.split(".")
        if parts[0] == "tcpgate" and parts[1] not in (*ARROWS[source.room], source.room):
            yield line, f"{source.room} may not import {'.'.join(parts[:2])}"


def purity(source: Source) -> Iterator[Finding]:
    """How the world comes into a pure room."""
    if source.room not in PURE:
        return
    for line, name in imports(source.tree):
        found = next((module for module in FORBIDDEN_IN_PURE_ROOMS if f"{name}.".startswith(f"{module}.")), None)
        if found and (source.name, found) not in EXCEPTIONS:
            yield line, f"imports {found}"
        if name.startswith("random.") and name != "random.Random":
            yield line, f"takes chance from {name}, not from a random.Random that it is given"
    for node in ast.walk(source.tree):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "is async"
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr != "Random":
                yield node.lineno, f"takes chance from random.{attr}, not from a random.Random that it is given"
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                if (source.name, name) not in EXCEPTIONS:
                    yield node.lineno, f"calls {name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime" | "date" as base), attr=attr)):
                if attr in CLOCKS:
                    yield node.lineno, f"reads the clock: {base}.{attr}()"


def no_globals(source: Source) -> Iterator[Finding]:
    """State that hides in a module."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"


def finished(source: Source) -> Iterator[Finding]:
    """Marks of unfinished work, and functions that do nothing."""
    for number, text in enumerate(source.text.splitlines(), 1):
        if mark := MARKS.search(text):
            yield number, f"unfinished: {mark[1]}"
    for owner in ast.walk(source.tree):
        protocol = isinstance(owner, ast.ClassDef) and any(_last_name(base) == "Protocol" for base in owner.bases)
        for node in getattr(owner, "body", []) if not protocol and isinstance(owner, ast.ClassDef | ast.Module) else []:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _does_something(node):
                yield node.lineno, f"{node.name} does nothing"


def sizes(source: Source) -> Iterator[Finding]:
    """Files and functions that one cannot take in at a glance."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE and source.name not in LONGER_FILES:
        yield lines, f"the file has {lines} lines, {MAX_FILE} are enough"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines, {MAX_FUNCTION} are enough"


def documented(source: Source) -> Iterator[Finding]:
    """Modules, public classes and public functions without a docstring."""
    tree = source.tree
    if ast.get_docstring(tree) is None:
        yield 1, "the module has no docstring"
    for node in tree.body:
        yield from _undocumented(node)


def _undocumented(node: ast.stmt, inherits: bool = False) -> Iterator[Finding]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return
    # A method of a class with a base may be told in that base; a setter is told by its property.
    setter = any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in node.decorator_list)
    overload = any(_last_name(mark) == "overload" for mark in node.decorator_list)
    if ast.get_docstring(node) is None and not (inherits or setter or overload):
        yield node.lineno, f"{node.name} has no docstring"
    if isinstance(node, ast.ClassDef):
        bases = [base for base in node.bases if _last_name(base) not in ("Protocol", "Generic")]
        for child in node.body:
            yield from _undocumented(child, inherits=bool(bases) or inherits)


def _last_name(node: ast.expr) -> str:
    """The name "Protocol" for `Protocol`, `typing.Protocol` and `Protocol[T]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _last_name(value)
    return ""


def _does_something(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    if any(_last_name(mark) in ("overload", "abstractmethod") for mark in node.decorator_list):
        return True
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    # A docstring alone says why nothing is to be done, as in a null object; `pass` and `...` say nothing.
    return not body or not all(
        isinstance(step, ast.Pass) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
        for step in body
    )


Rule = Callable[[Source], Iterable[Finding]]
RULES: list[Rule] = [arrows, purity, no_globals, finished, sizes, documented]


def broken(rule: Rule, source: Source) -> list[str]:
    """Where `source` breaks `rule`, for a person."""
    return [f"tcpgate/{source.name}:{line}: {what}" for line, what in rule(source)]


# -- the code keeps them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    found = [finding for source in sources() for finding in broken(rule, source)]
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    texts = {source.name: source.text for source in sources()}
    for name, module in EXCEPTIONS:
        assert re.search(rf"\b{module}\b", texts.get(name, "")), f"{name} has no {module} any more: drop the exception"
    for name in LONGER_FILES:
        assert len(texts.get(name, "").splitlines()) > MAX_FILE, f"{name} is short again: drop the exception"


def test_the_arrows_make_no_circle() -> None:
    done: set[str] = set()
    for room, below in ARROWS.items():
        assert done.issuperset(below), f"{room} may import {set(below) - done}, which stand above it"
        done.add(room)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_use_fakes_that_work_not_mocks(path: Path) -> None:
    imported = {name for _, name in imports(ast.parse(path.read_text()))}
    # Trio's MockClock stands in for no part of the gateway: it is a real clock that the test turns by hand.
    named = [name for name in imported - {"trio.testing.MockClock"} if "mock" in name.lower()]
    assert not named, f"{path} imports {named}"


# -- and the rules can fail -----------------------------------------------------------------------------------------

LONG = "def f() -> None:\n" + "    x = 1\n" * MAX_FUNCTION
BREAKS: list[tuple[Rule, str, str, str]] = [
    (arrows, "units.py", "from tcpgate.config import schema", "units may not import tcpgate.config"),
    (arrows, "stats/a.py", "import tcpgate.codec.express", "stats may not import tcpgate.codec"),
    (arrows, "codec/a.py", "from tcpgate import policy", "codec may not import tcpgate.policy"),
    (arrows, "net/a.py", "def f():\n    from tcpgate.policy.route import R", "net may not import tcpgate.policy"),
    (arrows, "proxy/a.py", "from tcpgate.control.probe import P", "proxy may not import tcpgate.control"),
    (
        arrows,
        "control/a.py",
        "if TYPE_CHECKING:\n    import tcpgate.proxy.pool",
        "control may not import tcpgate.proxy",
    ),
    (arrows, "process/a.py", "import tcpgate.cli", "process may not import tcpgate.cli"),
    (arrows, "policy/a.py", "from . import ring", "relative import ..ring"),
    (arrows, "attic/a.py", "", "room 'attic' is not in the table ARROWS"),
    (purity, "codec/a.py", "import trio", "imports trio"),
    (purity, "policy/a.py", "from time import monotonic", "imports time"),
    (purity, "policy/a.py", "import os.path", "imports os"),
    (purity, "filters/a.py", "def f():\n    import socket", "imports socket"),
    (purity, "state/a.py", "import urllib.request", "imports urllib.request"),
    (purity, "stats/a.py", "import mmap", "imports mmap"),
    (purity, "policy/a.py", "from random import choice", "takes chance from random.choice"),
    (purity, "policy/a.py", "import random\nrandom.shuffle(x)", "takes chance from random.shuffle"),
    (purity, "policy/a.py", "async def f(): ...", "is async"),
    (purity, "stats/a.py", "print(1)", "calls print()"),
    (purity, "stats/a.py", "datetime.now(UTC)", "reads the clock: datetime.now()"),
    (no_globals, "net/a.py", "def f():\n    global x\n    x = 1", "global x"),
    (finished, "net/a.py", "x = 1  # TO" + "DO: later", "unfinished: TO" + "DO"),
    (finished, "net/a.py", "def f():\n    raise NotImplementedError", "unfinished: NotImplementedError"),
    (finished, "net/a.py", "def f(): ...", "f does nothing"),
    (finished, "net/a.py", "class A:\n    async def f(self):\n        '''Told.'''\n        pass", "f does nothing"),
    (sizes, "net/a.py", "x = 1\n" * (MAX_FILE + 1), "the file has 401 lines"),
    (sizes, "net/a.py", LONG, "f has 61 lines"),
    (documented, "net/a.py", "x = 1", "the module has no docstring"),
    (documented, "net/a.py", "'''M.'''\nclass A: pass", "A has no docstring"),
    (documented, "net/a.py", "'''M.'''\nasync def f(): pass", "f has no docstring"),
    (documented, "net/a.py", "'''M.'''\nclass A:\n    '''A.'''\n    def f(self): return 1", "f has no docstring"),
]
KEEPS: list[tuple[Rule, str, str]] = [
    (arrows, "state/a.py", "import tcpgate.filters.base\nfrom tcpgate import errors\nimport trio"),
    (arrows, "__init__.py", ""),
    (purity, "policy/a.py", "import random\nfrom random import Random\nr = random.Random(1)\nr.choice(x)\ntimes = 1"),
    (purity, "config/a.py", "from urllib.parse import urlsplit\nimport ipaddress, json, datetime"),
    (purity, "stats/page.py", "import mmap"),
    (purity, "net/a.py", "import socket, time, trio"),
    (finished, "net/a.py", "class P(Protocol[T]):\n    def f(self) -> int: ...\n\ndef g():\n    '''Nothing to do.'''"),
    (sizes, "net/a.py", "x = 1\n" * MAX_FILE),
    (documented, "net/a.py", "'''M.'''\ndef _f(): pass\nclass A(B):\n    '''A.'''\n    def f(self): pass"),
]


@pytest.mark.parametrize(("rule", "name", "text", "what"), BREAKS)
def test_the_rule_fails_on_code_that_breaks_it(rule: Rule, name: str, text: str, what: str) -> None:
    found = broken(rule, Source(name, text))
    assert any(what in finding for finding in found), found


@pytest.mark.parametrize(("rule", "name", "text"), KEEPS)
def test_the_rule_passes_code_that_keeps_it(rule: Rule, name: str, text: str) -> None:
    assert broken(rule, Source(name, text)) == []

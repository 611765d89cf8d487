"""Reading files and what they include: each way to fail is told, and none hangs."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from tcpgate.config import source
from tcpgate.config.load import Loaded, load
from tcpgate.config.source import read_text
from tcpgate.errors import ConfigError

GOOD = '[listeners.web]\nbind = ["127.0.0.1:0"]\n[routes.all]\nrespond = {}\n'


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(name: str = "gate.toml") -> Loaded:
    """The config in the current folder."""
    return load(name, environ={}, credentials=None)


def problems(name: str = "gate.toml") -> list[str]:
    """What is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        read(name)
    return [str(problem) for problem in caught.value.problems]


def write(**files: str) -> None:
    """Files by stem: `gate` is gate.toml, `conf_d__a` is conf_d/a.toml."""
    for name, text in files.items():
        path = Path(*name.split("__")).with_suffix(".toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


# -- one file -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_told() -> None:
    assert problems() == ["gate.toml: does not exist"]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_file_is_told(text: str) -> None:
    write(gate=text)
    needs = 'it needs at least one listener: [listeners.NAME] with bind = ["0.0.0.0:80"]'
    assert problems() == [f"gate.toml: is empty; {needs}"]


def test_a_file_without_a_listener_is_told() -> None:
    write(gate="[gateway]\n")
    assert problems() == ['gate.toml: listeners: nothing would listen; add [listeners.NAME] with bind = ["0.0.0.0:80"]']


def test_a_directory_is_told() -> None:
    assert problems(".") == [".: is a directory, not a file"]


def test_a_fifo_is_told_and_never_opened() -> None:
    os.mkfifo("gate.toml")
    assert problems() == ["gate.toml: is not a regular file"]


def test_a_device_and_a_socket_are_told() -> None:
    assert problems("/dev/zero") == ["/dev/zero: is not a regular file"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("gate.toml")
        assert problems() == ["gate.toml: is not a regular file"]


def test_a_loop_of_links_is_told() -> None:
    Path("gate.toml").symlink_to("gate.toml")
    assert problems() == ["gate.toml: cannot be read: Too many levels of symbolic links"]


def test_a_file_behind_a_file_is_told() -> None:
    write(gate=GOOD)
    assert problems("gate.toml/x") == ["gate.toml/x: cannot be read: Not a directory"]


def test_a_name_with_a_nul_is_told() -> None:
    assert problems("a\0b") == ["a\\u0000b: cannot be read: embedded null byte"]


def test_an_endless_name_is_told() -> None:
    assert problems("a" * 300) == [f"{'a' * 300}: cannot be read: File name too long"]


def test_bad_utf8_is_told_with_its_place() -> None:
    Path("gate.toml").write_bytes(b"# one\n# two \xff\n")
    assert problems() == ["gate.toml:2: is not UTF-8: byte 0xff at offset 12"]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_is_told(mark: bytes) -> None:
    Path("gate.toml").write_bytes(mark + GOOD.encode("utf-16-le"))
    assert problems() == ["gate.toml: is UTF-16; save it as UTF-8"]


def test_a_byte_order_mark_is_told() -> None:
    Path("gate.toml").write_bytes(GOOD.encode("utf-8-sig"))
    assert problems() == ["gate.toml: starts with a byte order mark; save it as UTF-8 without one"]


def test_a_file_over_the_limit_is_told() -> None:
    write(gate="#" * 5000)
    with pytest.raises(ConfigError, match=r"^x: is larger than 4 KiB; this is hardly meant to be read here$"):
        read_text(Path("gate.toml"), "x", 4096)
    assert source.MAX_SIZE == 16 << 20


@pytest.mark.parametrize("seed", range(3))
def test_a_megabyte_of_random_bytes_is_told(seed: int) -> None:
    Path("gate.toml").write_bytes(random.Random(seed).randbytes(1 << 20))
    assert len(problems()) == 1


@pytest.mark.parametrize("piece", ["a", "[", "[[", "a.", "\x00", '"', '"""', "{a=", "'", "\\", "é", "= ", "a=1 "])
def test_a_megabyte_of_garbage_is_told(piece: str) -> None:
    write(gate=piece * ((1 << 20) // len(piece)))
    assert len(problems()) == 1


def test_a_line_that_is_no_toml_is_shown_where_it_goes_wrong() -> None:
    write(gate='[listeners.web]\nbind "0.0.0.0:80"\n')
    shown = 'at column 6, just before "\\"0.0.0.0:80\\""'
    assert problems() == [f"gate.toml:2: expected '=' after a key in a key/value pair, {shown}"]


def test_a_line_that_ends_too_early_is_shown() -> None:
    write(gate="[gateway]\ndrain =\n")
    assert problems() == ["gate.toml:2: invalid value, at column 8, at the end of the line"]


def test_a_number_longer_than_python_converts_is_told() -> None:
    write(gate="a = " + "1" * 5000)
    assert problems()[0].startswith("gate.toml: is not a config: Exceeds the limit (4300")


def test_a_huge_hexadecimal_number_is_told() -> None:
    write(gate=f"[gateway]\nstate_dir = 0x{'f' * 9000}\n" + GOOD)
    assert problems() == ["gate.toml:2: gateway.state_dir: expected a string, found a huge integer; write it in quotes"]


def test_nesting_beyond_the_parser_is_told() -> None:
    write(gate="a = " + "[" * 5000)
    assert problems() == ["gate.toml: is nested too deeply to be a config"]


# -- includes -------------------------------------------------------------------------------------------------------


def test_includes_are_read_in_sorted_order_relative_to_their_file() -> None:
    write(
        gate='include = ["conf_d/*.toml"]\n' + GOOD,
        conf_d__b='[upstreams.b]\nendpoints = ["b:1"]\n',
        conf_d__a='include = ["more.toml"]\n[upstreams.a]\nendpoints = ["a:1"]\n',
        conf_d__more="[gateway]\nworkers = 3\n",
    )
    loaded = read()
    names = [file.name for file in loaded.sources.files]
    assert names == ["gate.toml", "conf_d/a.toml", "conf_d/more.toml", "conf_d/b.toml"]
    assert loaded.config.gateway.workers == 3
    assert set(loaded.config.upstreams) == {"a", "b"}
    again = "conf_d/more.toml is included already; it is read once"
    assert [str(problem) for problem in loaded.warnings] == [
        f"gate.toml:1: include[0]: warning: {again}",
        "conf_d/a.toml:2: upstreams.a: warning: is not used by any route or listener",
        "conf_d/b.toml:1: upstreams.b: warning: is not used by any route or listener",
    ]


def test_an_absolute_pattern_and_an_absolute_file_are_included(tmp_path: Path) -> None:
    write(part="[gateway]\nworkers = 2\n", other__x="[log]\nlevel = 'error'\n")
    write(gate=f'include = ["{tmp_path}/part.toml", "{tmp_path}/oth*/*.toml"]\n' + GOOD)
    config = read(str(tmp_path / "gate.toml")).config
    assert (config.gateway.workers, config.log.level) == (2, "error")


def test_an_include_may_read_the_environment() -> None:
    write(gate='include = ["${DIR:-conf_d}/*.toml", "${GONE}"]\n' + GOOD, conf_d__a="[gateway]\nworkers = 2\n")
    not_set = '"${GONE}": the environment variable GONE is not set; set it, or write "${GONE:-default}"'
    assert problems() == [f"gate.toml:1: include[1]: {not_set}"]


def test_the_same_name_in_two_files_shows_both_places() -> None:
    write(
        gate='include = ["a.toml", "b.toml"]\n[upstreams.u]\nendpoints = ["u:1"]\n' + GOOD,
        a='# comment\n[upstreams.u]\nendpoints = ["v:1"]\n[gateway]\n',
        b="[gateway]\nworkers = 1\n",
    )
    assert [line for line in problems() if "warning" not in line] == [
        "a.toml:2: upstreams.u: the same name is set in gate.toml:2 already; one file must hold all of it",
        "b.toml:1: gateway: the same table is set in a.toml:4 already; one file must hold all of it",
    ]


def test_a_table_and_something_else_by_its_name_in_another_file_are_told() -> None:
    write(gate='include = ["a.toml"]\nupstreams = 3\n' + GOOD, a='[upstreams.u]\nendpoints = ["v:1"]\n')
    assert problems() == [
        "gate.toml:2: upstreams: expected tables with a name, as [upstreams.NAME], found the integer 3"
    ]
    write(gate='include = ["a.toml"]\n[upstreams.u]\nendpoints = ["v:1"]\n' + GOOD, a="upstreams = 3\n")
    assert problems() == ["a.toml:1: upstreams: expected tables with a name, as [upstreams.NAME], found the integer 3"]


def test_an_include_that_is_not_there_shows_who_asked_and_hides_no_other_problem() -> None:
    write(gate='include = ["absent.toml"]\n[routes.r]\nupstream = "in-absent"\nmethods = ["get"]\n' + GOOD)
    lower = '"get" is not what clients send: methods are case-sensitive; write "GET"'
    assert problems() == [
        f"gate.toml:4: routes.r.methods[0]: {lower}",
        "absent.toml: does not exist (included by gate.toml:1)",
    ]


def test_names_that_an_unreadable_file_may_hold_are_not_called_wrong() -> None:
    write(gate='include = ["bad.toml"]\n[routes.r]\nupstream = "x"\nfilters = ["y"]\n', bad="[\n")
    (problem,) = problems()
    assert problem.startswith("bad.toml:1: ")
    assert problem.endswith("at column 2, at the end of the line (included by gate.toml:1)")


def test_a_file_that_includes_itself_is_told() -> None:
    write(gate='include = ["gate.toml"]\n' + GOOD)
    assert problems() == ["gate.toml:1: include[0]: includes itself: gate.toml -> gate.toml"]


def test_a_loop_of_includes_is_told() -> None:
    write(gate='include = ["a.toml"]\n' + GOOD, a='include = ["b.toml"]\n', b='include = ["./a.toml"]\n')
    assert problems() == ["b.toml:1: include[0]: includes itself: gate.toml -> a.toml -> b.toml -> a.toml"]


def test_a_file_under_two_names_is_read_once() -> None:
    write(gate='include = ["a.toml", "link.toml"]\n' + GOOD, a="[gateway]\nworkers = 2\n")
    Path("link.toml").symlink_to("a.toml")
    again = "link.toml is included already, as a.toml; it is read once"
    assert [str(problem) for problem in read().warnings] == [f"gate.toml:1: include[1]: warning: {again}"]


def test_includes_have_a_depth() -> None:
    write(gate='include = ["i1.toml"]\n' + GOOD)
    for number in range(1, 12):
        write(**{f"i{number}": f'include = ["i{number + 1}.toml"]\n'})
    (problem,) = problems()
    assert problem.startswith("i8.toml:1: include: is more than 8 files deep: gate.toml -> i1.toml -> ")


@pytest.mark.parametrize("value", ['"a.toml"', "[1]", "{}", "3"])
def test_an_include_that_is_no_list_of_names_is_told(value: str) -> None:
    write(gate=f"include = {value}\n" + GOOD)
    assert problems() == ['gate.toml:1: include: expected a list of file names, such as ["conf.d/*.toml"]']


@pytest.mark.parametrize("pattern", ["a\\u0000b", "a\\u0000*", "", "loop.toml"])
def test_an_include_that_no_file_can_be_is_told(pattern: str) -> None:
    Path("loop.toml").symlink_to("loop.toml")
    write(gate=f'include = ["{pattern}"]\n' + GOOD)
    with_wildcard = "*" in pattern
    told = [str(problem) for problem in read().warnings] if with_wildcard else problems()
    assert len(told) == 1
    assert "no file matches" in told[0] if with_wildcard else "(included by gate.toml:1)" in told[0]


def test_a_directory_that_a_pattern_matches_is_told() -> None:
    write(gate='include = ["conf*"]\n' + GOOD)
    Path("conf.d").mkdir()
    assert problems() == ["conf.d: is a directory, not a file (included by gate.toml:1)"]

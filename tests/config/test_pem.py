"""Files that TLS tables name: read with the config, judged where they are named, read again when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tcpgate.config import schema
from tcpgate.config.check import World
from tcpgate.config.diff import diff
from tcpgate.config.export import dump
from tcpgate.config.host import host
from tcpgate.config.load import Loaded, load
from tcpgate.config.pem import Files
from tcpgate.config.schema_tls import ListenerTls, UpstreamTls
from tcpgate.errors import ConfigError
from tests import pki

CA = pki.authority()
SITE = pki.make("a.example", "*.b.example", "10.0.0.1", issuer=CA)
OTHER = pki.make("c.example", issuer=CA)
PLAIN = '[listeners.web]\nbind = ["127.0.0.1:443"]\n[routes.all]\nupstream = "u"\n[upstreams.u]\nendpoints = ["a:1"]\n'
PAIR = '[listeners.web.tls]\ncertificates = [{ cert = "site.crt", key = "site.key" }]\n'
LINE = f"{PLAIN.count(chr(10)) + 2}"
AT = f"{LINE}: listeners.web.tls"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the config and its files are."""
    monkeypatch.chdir(tmp_path)
    write(SITE.chain + CA.chain, "site.crt")
    write(SITE.private, "site.key")
    write(CA.chain, "ca.pem")
    write(pki.revoked(CA), "ca.crl")
    return tmp_path


def write(text: str, name: str, mode: int = 0o600) -> None:
    """A file."""
    Path(name).write_text(text)
    Path(name).chmod(mode)


def read(more: str = PAIR, **how: Any) -> Loaded:
    """The config with `more` at its end."""
    Path("gate.toml").write_text(PLAIN + more)
    return load("gate.toml", environ={}, credentials=how.pop("credentials", None), **how)


def told(more: str = PAIR, **how: Any) -> list[str]:
    """What is said of it."""
    try:
        problems = read(more, **how).warnings
    except ConfigError as exc:
        problems = exc.problems
    return [str(problem).removeprefix("gate.toml:") for problem in problems]


def tls_of(config: schema.Config) -> ListenerTls:
    """The listener's."""
    tls = config.listeners["web"].tls
    assert tls is not None
    return tls


def outward(config: schema.Config) -> UpstreamTls:
    """The upstream's."""
    tls = config.upstreams["u"].tls
    assert tls is not None
    return tls


# -- a load ---------------------------------------------------------------------------------------------------------


def test_a_certificate_is_read_with_its_key_and_gets_its_names() -> None:
    loaded = read()
    assert loaded.warnings == []
    (pair,) = tls_of(loaded.config).certificates
    assert pair.names == ("a.example", "*.b.example", "10.0.0.1")
    assert pair.chain_pem is not None
    assert pair.chain_pem.reveal() == SITE.chain + CA.chain
    assert pair.key_pem is not None
    assert pair.key_pem.reveal() == SITE.private


def test_names_that_are_set_take_the_place_of_those_inside() -> None:
    loaded = read(PAIR.replace('.key" }', '.key", names = ["A.example"] }'))
    assert tls_of(loaded.config).certificates[0].names == ("a.example",)


def test_no_form_of_the_config_shows_what_a_file_held() -> None:
    config = read().config
    secret = SITE.private.splitlines()[1]
    for text in (repr(config), str(dump(config)), str(read().files), str(diff(schema.Config(), config).as_json())):
        assert secret not in text
        assert "PRIVATE" not in text


def test_authorities_and_lists_are_read_for_the_listener_its_hosts_and_upstreams() -> None:
    hosts = '[listeners.web.tls.hosts."a.example"]\nclient_auth = "required"\nclient_ca = "ca.pem"\n'
    more = 'client_ca = "ca.pem"\nclient_crl = "ca.crl"\nclient_auth = "optional"\n'
    up = '[upstreams.u.tls]\nca = "ca.pem"\ncert = "site.crt"\nkey = "site.key"\n'
    loaded = read(PAIR + more + hosts + up)
    assert loaded.warnings == []
    tls, host_rules, upstream = tls_of(loaded.config), tls_of(loaded.config).hosts["a.example"], outward(loaded.config)
    assert tls.client_crl_pem is not None
    assert host_rules.client_crl_pem is None
    for held in (tls.client_ca_pem, host_rules.client_ca_pem, upstream.ca_pem):
        assert held is not None
        assert held.reveal() == CA.chain
    assert upstream.cert_pem is not None
    assert upstream.key_pem is not None


def test_a_path_is_relative_to_the_file_that_names_it() -> None:
    Path("conf.d").mkdir()
    for name in ("site.crt", "site.key"):
        Path(name).rename(f"conf.d/{name}")
    Path("conf.d/web.toml").write_text(PLAIN + PAIR)
    Path("gate.toml").write_text('include = ["conf.d/*.toml"]\n')
    loaded = load("gate.toml", environ={}, credentials=None)
    assert tls_of(loaded.config).certificates[0].key_pem is not None
    assert loaded.files is not None
    assert loaded.files.paths() == [Path("conf.d/site.crt"), Path("conf.d/site.key")]


def test_a_key_may_be_a_credential_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    write(SITE.private, "given/web-key")
    text = PAIR.replace("site.key", "credential:web-key")
    assert told(text, credentials=tmp_path / "given") == []
    assert told(text) == [
        f"{AT}.certificates[0].key: there are no credentials here: "
        "systemd's LoadCredential= sets $CREDENTIALS_DIRECTORY"
    ]


def test_one_file_may_hold_both_and_be_named_often() -> None:
    write(SITE.private + SITE.chain, "both.pem")
    assert told(PAIR.replace("site.crt", "both.pem").replace("site.key", "both.pem")) == []


# -- what is wrong --------------------------------------------------------------------------------------------------


def instead(name: str, make: Callable[[str], None]) -> None:
    """Something else under this name."""
    Path(name).unlink()
    make(name)


def swap(one: str, other: str) -> None:
    """Each file under the other's name."""
    texts = Path(one).read_text(), Path(other).read_text()
    write(texts[1], one)
    write(texts[0], other)


CASES: list[tuple[str, Callable[[], object], list[str]]] = [
    ("missing", lambda: Path("site.key").unlink(), [".certificates[0].key: site.key does not exist"]),
    (
        "a folder",
        lambda: instead("site.crt", os.mkdir),
        [".certificates[0].cert: site.crt is a directory, not a file"],
    ),
    (
        "a pipe",
        lambda: instead("site.crt", os.mkfifo),
        [".certificates[0].cert: site.crt is not a regular file"],
    ),
    (
        "a huge file",
        lambda: write("x" * (1 << 20 | 1), "site.crt"),
        [".certificates[0].cert: site.crt is larger than 1024 KiB; this is hardly meant to be read here"],
    ),
    (
        "binary",
        lambda: Path("site.crt").write_bytes(b"\x30\x82\xff\x00" * 50),
        [".certificates[0].cert: site.crt holds no certificate: it is not PEM, which begins with -----BEGIN"],
    ),
    (
        "swapped",
        lambda: swap("site.crt", "site.key"),
        [
            ".certificates[0].cert: site.crt holds no certificate, but a private key; cert and key may be swapped",
            ".certificates[0].key: site.key holds no private key, but a certificate; cert and key may be swapped",
        ],
    ),
    (
        "another key",
        lambda: write(OTHER.private, "site.key"),
        [".certificates[0].key: site.key is not the key of the certificate for a.example"],
    ),
    (
        "a key for all",
        lambda: Path("site.key").chmod(0o644),
        [
            ".certificates[0].key: warning: site.key can be read by every user of this host; "
            "chmod 600 keeps the key secret"
        ],
    ),
    (
        "a chain out of order",
        lambda: write(SITE.chain + OTHER.chain, "site.crt"),
        [
            ".certificates[0].cert: warning: site.crt is in the wrong order: certificate 2, c.example, did not issue "
            "the one before it, a.example; each is followed by its issuer"
        ],
    ),
]


@pytest.mark.parametrize(("spoil", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_pair_is_told_of_at_its_place(spoil: Callable[[], object], expected: list[str]) -> None:
    spoil()
    assert told() == [AT + line for line in expected]


@pytest.fixture
def nobody(folder: Path) -> Iterator[None]:
    """Makes root somebody to whom files can be closed; others are that already. The folder is open to all."""
    Path("gate.toml").touch()
    for path in (folder, Path("gate.toml"), Path("site.crt"), Path("ca.pem"), Path("ca.crl")):
        path.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.usefixtures("nobody")
def test_a_file_that_this_user_may_not_read_is_told_with_its_owner() -> None:
    if os.getuid() != 0:
        Path("site.key").chmod(0)
    world = host({"PATH": "/bin"}, 0)
    line = told(world=attrs.evolve(world, makeable=lambda _: ""))[0]
    assert line.startswith(
        f"{AT}.certificates[0].key: site.key cannot be read: Permission denied for user {world.user}; it is "
    )
    assert line.endswith("00; give it the right, or pass the file by systemd's LoadCredential=")


def test_a_name_inside_a_certificate_moves_no_cursor() -> None:
    write(pki.make(common_name="a\x1b[2J\nb").chain + CA.chain, "site.crt")
    (line,) = told()
    assert line.isprintable()


def test_the_lists_must_be_those_of_the_authorities() -> None:
    stranger = pki.authority("Stranger")
    write(pki.revoked(stranger), "ca.crl")
    more = 'client_auth = "required"\nclient_ca = "ca.pem"\nclient_crl = "ca.crl"\n'
    assert told(PAIR + more)[0] == (
        f"{int(LINE) + 3}: listeners.web.tls.client_crl: "
        "ca.crl is the list of CN=Stranger, which is not one of client_ca"
    )


def test_a_hosts_list_is_held_against_the_listeners_authorities_where_it_has_none() -> None:
    write(pki.revoked(pki.authority("Stranger")), "other.crl")
    more = 'client_auth = "required"\nclient_ca = "ca.pem"\n[listeners.web.tls.hosts."a.example"]\n'
    assert told(f'{PAIR}{more}client_crl = "ca.crl"\n') == []
    assert "which is not one of client_ca" in told(f'{PAIR}{more}client_crl = "other.crl"\n')[0]


def test_a_file_of_authorities_without_one_is_an_error() -> None:
    write(SITE.private, "ca.pem")
    for table in (PAIR + 'client_auth = "required"\nclient_ca = "ca.pem"\n', '[upstreams.u.tls]\nca = "ca.pem"\n'):
        assert "ca.pem holds no certificate, but a private key" in told(table)[0]


def test_names_that_the_certificate_is_not_for_are_told() -> None:
    text = PAIR.replace('.key" }', '.key", names = ["z.example"] }')
    assert told(text) == [
        f"{AT}.certificates[0].cert: warning: site.crt is not for z.example but for a.example, *.b.example, 10.0.0.1; "
        "clients will refuse it"
    ]


def test_a_damaged_list_and_an_authority_that_is_none_are_told() -> None:
    write("-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", "ca.crl")
    more = 'client_auth = "required"\nclient_ca = "ca.pem"\n'
    assert (
        "ca.crl has something that cannot be read as a list of revoked: "
        in told(PAIR + more + 'client_crl = "ca.crl"\n')[0]
    )
    write(CA.chain + SITE.chain, "ca.pem")
    assert [line.partition("warning: ")[2] for line in told(PAIR + more)] == [
        "ca.pem has as number 2 a.example, which is no authority (CA:FALSE): nothing that it signed counts"
    ]


def test_every_file_that_is_named_is_watched_once() -> None:
    hosts = '[listeners.web.tls.hosts."a.example"]\nclient_ca = "ca.pem"\nclient_auth = "required"\n'
    up = '[upstreams.u.tls]\nca = "up.pem"\ncert = "site.crt"\nkey = "site.key"\n'
    write(CA.chain, "up.pem")
    more = 'client_auth = "optional"\nclient_ca = "ca.pem"\nclient_crl = "ca.crl"\n'
    assert [path.name for path in files(read(PAIR + more + hosts + up)).paths()] == [
        "site.crt",
        "site.key",
        "ca.pem",
        "ca.crl",
        "up.pem",
    ]


def test_every_problem_of_every_file_shows_at_once() -> None:
    Path("site.key").unlink()
    Path("ca.pem").unlink()
    lines = told(PAIR + 'client_auth = "required"\nclient_ca = "ca.pem"\n[upstreams.u.tls]\nca = "ca.pem"\n')
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
        "listeners.web.tls.certificates[0].key",
        "listeners.web.tls.client_ca",
        "upstreams.u.tls.ca",
    ]


# -- the time -------------------------------------------------------------------------------------------------------


def at(days: float) -> World:
    """The host, so many days after the certificates were made."""
    return attrs.evolve(host({"PATH": "/bin"}, 0), now=pki.NOW.timestamp() + days * 86400, makeable=lambda _: "")


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-2, ["certificate for a.example is not valid before 2029-12-31"]),
        (0, []),
        (75.9, []),
        (76.1, ["certificate for a.example ends in 14 days, on 2030-04-01"]),
        (89.5, ["certificate for a.example ends in 12 hours, on 2030-04-01"]),
        (90, ["certificate for a.example ended on 2030-04-01"]),
        (1000, ["certificate for a.example ended on 2030-04-01"]),
    ],
)
def test_a_certificate_near_its_end_or_past_it_loads_with_a_warning(days: float, expected: list[str]) -> None:
    write(SITE.chain, "site.crt")
    where = f"{AT}.certificates[0].cert: warning: the "
    assert told(world=at(days)) == [where + line for line in expected]


def test_authorities_and_lists_have_an_end_too() -> None:
    more = 'client_auth = "required"\nclient_ca = "ca.pem"\nclient_crl = "ca.crl"\n'
    assert [line.partition(": ")[2] for line in told(PAIR + more, world=at(31))] == [
        "listeners.web.tls.client_crl: warning: a list ended on 2030-01-31: "
        "every client certificate is refused until a newer one comes"
    ]
    assert (
        "listeners.web.tls.client_ca: warning: the certificate for CN=Test CA ended on 2030-04-01: "
        "nothing that it signed counts any more"
    ) in [line.partition(": ")[2] for line in told(PAIR + more, world=at(91))]


# -- read again -----------------------------------------------------------------------------------------------------


def files(loaded: Loaded) -> Files:
    """What can be read again."""
    assert loaded.files is not None
    return loaded.files


def test_a_renewed_certificate_is_taken_with_its_names_and_its_old_warnings_go() -> None:
    loaded = read(world=at(80))
    write(OTHER.chain, "site.crt")
    write(OTHER.private, "site.key")
    again = files(loaded).read_again(loaded.config, pki.NOW.timestamp())
    (pair,) = tls_of(again.config).certificates
    assert (pair.names, again.kept, again.warnings) == (("c.example",), (), ())
    assert files(loaded).without(loaded.warnings) == []
    assert diff(loaded.config, again.config).describe() == [
        '~ listener web: tls.certificates[0].names ["a.example", "*.b.example", "10.0.0.1"] -> ["c.example"], '
        "tls.certificates[0].cert is another one, tls.certificates[0].key is another one, for new connections"
    ]


def test_what_has_not_changed_is_equal_after_a_further_reading() -> None:
    loaded = read(PAIR + '[upstreams.u.tls]\nca = "ca.pem"\n')
    assert files(loaded).read_again(loaded.config, 0.0).config == loaded.config


def test_half_a_renewal_keeps_the_old_pair_and_says_why() -> None:
    loaded = read()
    write(OTHER.chain, "site.crt")
    again = files(loaded).read_again(loaded.config, pki.NOW.timestamp())
    assert again.config == loaded.config
    (kept,) = again.kept
    assert kept.path == "listeners.web.tls.certificates[0]"
    assert kept.files == ("site.crt", "site.key")
    assert kept.why == "site.key is not the key of the certificate for c.example"
    write(pki.make("c.example").chain, "site.crt")
    (other,) = files(loaded).read_again(loaded.config, pki.NOW.timestamp()).kept
    assert (other.path, other.why) == (kept.path, kept.why)
    assert other != kept  # another content, so it is told anew


def test_one_bad_pair_does_not_hold_up_the_others() -> None:
    write(OTHER.chain, "other.crt")
    write(OTHER.private, "other.key")
    two = PAIR.replace("}]", '}, { cert = "other.crt", key = "other.key" }]')
    loaded = read(two + '[upstreams.u.tls]\nca = "ca.pem"\ncert = "site.crt"\nkey = "site.key"\n')
    renewed = pki.make("c.example", "d.example")
    write(renewed.chain, "other.crt")
    write(renewed.private, "other.key")
    Path("site.crt").unlink()
    again = files(loaded).read_again(loaded.config, pki.NOW.timestamp())
    first, second = tls_of(again.config).certificates
    assert first == tls_of(loaded.config).certificates[0]
    assert second.names == ("c.example", "d.example")
    assert outward(again.config) == outward(loaded.config)
    assert [kept.path for kept in again.kept] == ["listeners.web.tls.certificates[0]", "upstreams.u.tls"]


def test_authorities_that_became_unreadable_stay_what_they_were() -> None:
    loaded = read(PAIR + 'client_auth = "required"\nclient_ca = "ca.pem"\nclient_crl = "ca.crl"\n')
    write("", "ca.pem")
    again = files(loaded).read_again(loaded.config, pki.NOW.timestamp())
    assert again.config == loaded.config
    assert [kept.why for kept in again.kept] == [
        "ca.pem holds no certificate: it is not PEM, which begins with -----BEGIN"
    ]

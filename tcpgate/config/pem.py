"""The files that TLS tables name, read into the config: certificates, keys, authorities, what they revoked.

Who reads is the supervisor, at a load and whenever a file changes; workers get the content with the config, so a key
has to be readable for one process only. What is wrong with a file stands at the key that names it. At a re-reading a
pair with anything wrong about it stays what it was: half a renewal must not take the other half down.

Does I/O by reading only, and never blocks on what is not a regular file.
"""

from __future__ import annotations

import grp
import hashlib
import pwd
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs

from tcpgate.config import certificate as x509
from tcpgate.config import schema
from tcpgate.config.check_tls import check_ends
from tcpgate.config.report import KeyPath, Report, dotted, printable
from tcpgate.config.schema_tls import Certificate, ListenerTls, TlsRules, UpstreamTls
from tcpgate.config.source import MAX_SIZE, Sources, read_bytes
from tcpgate.config.validators import Secret
from tcpgate.errors import ConfigError, Problem

MAX_PAIR = 1 << 20
"""Bytes in a file with a certificate or a key; a long chain has 10 KiB."""
CREDENTIAL = "credential:"

Rules = TypeVar("Rules", ListenerTls, TlsRules)
Named = tuple[KeyPath, str]
"""Where a file is named, and how."""


@attrs.frozen(kw_only=True)
class Kept:
    """Files with something wrong about them, so that what they held before goes on."""

    path: str
    """Dotted: `listeners.web.tls.certificates[0]`."""
    files: tuple[str, ...]
    why: str
    digest: str
    """Of what they hold now, to tell one failure from the next."""

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.path}: {self.why}; what was there before goes on"


@attrs.frozen(kw_only=True)
class Reread:
    """A config with its files read, and what could not be taken from them."""

    config: schema.Config
    kept: tuple[Kept, ...]
    warnings: tuple[Problem, ...] = ()
    """All that is odd about the files as they are now."""


@attrs.frozen(kw_only=True)
class Files:
    """The files that one config names, to be read as often as they change."""

    bare: schema.Config
    """The config with none of them read."""
    sources: Sources
    credentials: Path | None
    user: str = ""
    """Who reads; "" if unknown."""

    def paths(self) -> list[Path]:
        """Where they all are, each once, whether there is anything or not."""
        found = (self._path(at, name) for at, name in self._named())
        return list(dict.fromkeys(path for path in found if path is not None))

    def read(self, report: Report, old: schema.Config | None = None) -> Reread:
        """The config with all of them. Where one cannot be used, `report` says why, and what `old` (the same config,
        read before) has in its place stays."""
        reading = _Reading(self._path, self.user, report)
        before = old or self.bare
        listeners, upstreams = dict(self.bare.listeners), dict(self.bare.upstreams)
        for name, listener in self.bare.listeners.items():
            if listener.tls is not None:
                tls = reading.listener(("listeners", name, "tls"), listener.tls, before.listeners[name].tls)
                listeners[name] = attrs.evolve(listener, tls=tls)
        for name, upstream in self.bare.upstreams.items():
            if upstream.tls is not None:
                outward = reading.upstream(("upstreams", name, "tls"), upstream.tls, before.upstreams[name].tls)
                upstreams[name] = attrs.evolve(upstream, tls=outward)
        config = attrs.evolve(self.bare, listeners=listeners, upstreams=upstreams)
        return Reread(config=config, kept=tuple(reading.kept))

    def read_again(self, old: schema.Config, now: float) -> Reread:
        """As `read`, of a config that serves: nothing raises. `now` is Unix time."""
        report = Report(self.sources.where)
        again = self.read(report, old)
        check_ends(again.config, now, report)
        return attrs.evolve(again, warnings=tuple(report.warnings))

    def without(self, warnings: Iterable[Problem]) -> list[Problem]:
        """Those warnings that are not about the content of a file."""
        named = {dotted(at) for at, _ in self._named()}
        return [warning for warning in warnings if warning.path not in named]

    def _path(self, at: KeyPath, name: str) -> Path | None:
        if name.startswith(CREDENTIAL):
            return None if self.credentials is None else self.credentials / name.removeprefix(CREDENTIAL)
        return self.sources.resolve(at, name)

    def _named(self) -> Iterator[Named]:
        for name, listener in self.bare.listeners.items():
            if listener.tls is not None:
                at: KeyPath = ("listeners", name, "tls")
                for index, pair in enumerate(listener.tls.certificates):
                    yield (*at, "certificates", index, "cert"), pair.cert
                    yield (*at, "certificates", index, "key"), pair.key
                yield from _present(at, listener.tls, ("client_ca", "client_crl"))
                for server, rules in listener.tls.hosts.items():
                    yield from _present((*at, "hosts", server), rules, ("client_ca", "client_crl"))
        for name, upstream in self.bare.upstreams.items():
            if upstream.tls is not None:
                yield from _present(("upstreams", name, "tls"), upstream.tls, ("ca", "cert", "key"))


def _present(at: KeyPath, owner: object, keys: Iterable[str]) -> Iterator[Named]:
    for key in keys:
        if (name := getattr(owner, key)) is not None:
            yield (*at, key), name


@attrs.define
class _Reading:
    """One time through all files. A file that is named often is read once, so all who name it have the same."""

    path: Callable[[KeyPath, str], Path | None]
    user: str
    report: Report
    kept: list[Kept] = attrs.field(factory=list)
    texts: dict[Path, str] = attrs.field(factory=dict)
    _shown: dict[KeyPath, str] = attrs.field(factory=dict)
    """Where a file is named -> its path, for people."""
    _faults: list[str] = attrs.field(factory=list)
    """What is wrong with the files of the moment."""

    # -- tables -----------------------------------------------------------------------------------------------------

    def listener(self, at: KeyPath, bare: ListenerTls, old: ListenerTls | None) -> ListenerTls:
        old = old or bare
        pairs = [
            self.pair((*at, "certificates", index), one, before)
            for index, (one, before) in enumerate(zip(bare.certificates, old.certificates, strict=True))
        ]
        own = self.authorities(at, bare, old, None)
        hosts = {
            name: self.authorities((*at, "hosts", name), rules, old.hosts[name], own.client_ca_pem)
            for name, rules in bare.hosts.items()
        }
        return attrs.evolve(own, certificates=tuple(pairs), hosts=hosts)

    def upstream(self, at: KeyPath, bare: UpstreamTls, old: UpstreamTls | None) -> UpstreamTls:
        old = old or bare
        authorities = self.text((*at, "ca"), bare.ca, MAX_SIZE)
        if authorities is not None:
            self.judge_authorities((*at, "ca"), authorities)
        ca_pem = _secret(authorities and x509.certificate_blocks(authorities))
        if self.failed(at, [bare.ca], [authorities]):
            ca_pem = old.ca_pem
        chain, key = self.text((*at, "cert"), bare.cert), self.text((*at, "key"), bare.key, private=True)
        if chain is not None and key is not None:
            self.judge_pair(at, chain, key)
        cert_pem, key_pem = _secret(chain and x509.certificate_blocks(chain)), _secret(key and x509.key_block(key))
        if self.failed(at, [bare.cert, bare.key], [chain, key]):
            cert_pem, key_pem = old.cert_pem, old.key_pem
        return attrs.evolve(bare, ca_pem=ca_pem, cert_pem=cert_pem, key_pem=key_pem)

    def pair(self, at: KeyPath, bare: Certificate, old: Certificate) -> Certificate:
        """A listener's certificate with its key; its names, if none are set, are those inside it."""
        chain, key = self.text((*at, "cert"), bare.cert), self.text((*at, "key"), bare.key, private=True)
        if chain is not None and key is not None and self.judge_pair(at, chain, key):
            for finding in x509.name_warnings(chain, bare.names):
                self.warn((*at, finding.part), finding.text)
        if self.failed(at, [bare.cert, bare.key], [chain, key]) or chain is None or key is None:
            return old
        return attrs.evolve(
            bare,
            names=bare.names or x509.read_chain(chain)[0].names,
            chain_pem=Secret(x509.certificate_blocks(chain)),
            key_pem=Secret(x509.key_block(key)),
        )

    def authorities(self, at: KeyPath, bare: Rules, old: Rules, inherited: Secret | None) -> Rules:
        """Whose client certificates count, and which of them no more; `inherited`: the authorities of the listener."""
        ca, crl = self.text((*at, "client_ca"), bare.client_ca, MAX_SIZE), None
        if bare.client_crl is not None:
            crl = self.text((*at, "client_crl"), bare.client_crl, MAX_SIZE)
        good = ca is None or self.judge_authorities((*at, "client_ca"), ca)
        issuers = ca if bare.client_ca is not None else inherited and inherited.reveal()
        if crl is not None and good and issuers:
            self.judge_lists((*at, "client_crl"), crl, issuers)
        if self.failed(at, [bare.client_ca, bare.client_crl], [ca, crl]):
            return attrs.evolve(bare, client_ca_pem=old.client_ca_pem, client_crl_pem=old.client_crl_pem)
        return attrs.evolve(
            bare,
            client_ca_pem=_secret(ca and x509.certificate_blocks(ca)),
            client_crl_pem=_secret(crl and x509.list_blocks(crl)),
        )

    # -- contents ---------------------------------------------------------------------------------------------------

    def judge_pair(self, at: KeyPath, chain: str, key: str) -> bool:
        """Whether the two can be used."""
        good = True
        for finding in x509.pair_findings(chain, key):
            if finding.warning:
                self.warn((*at, finding.part), finding.text)
            else:
                self.fault((*at, finding.part), finding.text)
                good = False
        return good

    def judge_authorities(self, at: KeyPath, text: str) -> bool:
        """Whether the file has any."""
        try:
            for warning in x509.authority_warnings(text):
                self.warn(at, warning)
        except ValueError as exc:
            self.fault(at, str(exc))
            return False
        return True

    def judge_lists(self, at: KeyPath, text: str, issuers: str) -> None:
        try:
            for problem, warning in x509.list_findings(text, issuers):
                if warning:
                    self.warn(at, problem)
                else:
                    self.fault(at, problem)
        except ValueError as exc:
            self.fault(at, str(exc))

    def fault(self, at: KeyPath, text: str) -> None:
        # A name inside a certificate may be any text at all.
        text = printable(f"{self._shown[at]} {text}" if at in self._shown else text)
        self.report.error(at, text)
        self._faults.append(text)

    def warn(self, at: KeyPath, text: str) -> None:
        self.report.warn(at, printable(f"{self._shown[at]} {text}"))

    def failed(self, at: KeyPath, names: Iterable[str | None], texts: Iterable[str | None]) -> bool:
        """Whether anything was wrong with these files; if so they are noted as kept."""
        faults, self._faults = self._faults, []
        if not faults:
            return False
        digest = hashlib.sha256(repr(list(texts)).encode()).hexdigest()
        files = tuple(name for name in names if name is not None)
        self.kept.append(Kept(path=dotted(at), files=files, why="; ".join(faults), digest=digest))
        return True

    # -- files ------------------------------------------------------------------------------------------------------

    def text(self, at: KeyPath, name: str | None, limit: int = MAX_PAIR, *, private: bool = False) -> str | None:
        """What the file called `name` holds; None if there is no such name, or it cannot be read, which is told."""
        path = None if name is None else self.path(at, name)
        if path is None:
            if name is not None:
                self.fault(at, "there are no credentials here: systemd's LoadCredential= sets $CREDENTIALS_DIRECTORY")
            return None
        self._shown[at] = shown = printable(str(path))
        try:
            if path not in self.texts:
                # What is not ASCII can only stand around the blocks, where people write to each other.
                self.texts[path] = read_bytes(path, shown, limit).decode(errors="replace")
            if private and path.stat().st_mode & stat.S_IROTH:
                self.warn(at, "can be read by every user of this host; chmod 600 keeps the key secret")
        except ConfigError as exc:
            denied = isinstance(exc.__context__, PermissionError)
            self.fault(at, exc.problems[0].text + (_denied(path, self.user) if denied else ""))
            return None
        except OSError:
            return self.texts[path]  # it went away after it was read; the next reading will tell
        return self.texts[path]


def _denied(path: Path, user: str) -> str:
    """Whom the file is for, and the cure."""
    who = f"user {user}" if user else "this user"
    try:
        found = path.stat()
        owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
        owned = f"; it is {owner}:{group} {stat.S_IMODE(found.st_mode):04o}"
    except (OSError, KeyError):  # the folder is closed as well; an owner without a name
        owned = ""
    return f" for {who}{owned}; give it the right, or pass the file by systemd's LoadCredential="


def _secret(text: str | None) -> Secret | None:
    return Secret(text) if text else None

"""Certificates that change on disk while they serve, between a real reader, a real reloader and fake workers."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.abc import Clock

from tcpgate.config import schema
from tcpgate.config.load import load
from tcpgate.config.validators import Secret
from tcpgate.control.certificates import RETRY, CertificateKeeper, documents, stamps
from tcpgate.control.reload import Reloader
from tests import pki

TEXT = """
[listeners.web]
bind = ["127.0.0.1:443"]
[listeners.web.tls]
certificates = [{ cert = "one.crt", key = "one.key" }, { cert = "two.crt", key = "two.key" }]
[routes.all]
respond = {}
"""


@attrs.define(eq=False)
class Workers:
    """Where generations go, unless there is a `problem`."""

    problem: str = ""
    pause: float = 0.0
    """Seconds that it takes."""
    served: list[schema.Config] = attrs.field(factory=list)
    tries: int = 0
    _held: list[schema.Config] = attrs.field(factory=list)

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        self.tries += 1
        self._held = [config]
        await trio.sleep(self.pause)
        return [self.problem] if self.problem else []

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()
        self.served += self._held

    def abandon(self) -> None:
        self._held = []


class Beside:
    """Nothing lives beside these workers."""

    async def prepare(self, config: schema.Config) -> None:
        await trio.lowlevel.checkpoint()

    def apply(self, config: schema.Config, old: schema.Config | None) -> None:
        """Nothing follows it."""

    def abandon(self) -> None:
        """Nothing was opened."""


class Binder:
    """Sockets that nobody connects to."""

    def bind(self, text: str, backlog: int, mode: int) -> socket.socket:
        return socket.socket()

    def permit(self, text: str, mode: int) -> None:
        """There is no file."""

    def start(self, text: str) -> None:
        """They never listen."""

    def release(self, text: str, sock: socket.socket) -> None:
        sock.close()


@attrs.define(eq=False)
class House:
    """A reloader, its keeper of certificates, and what they told."""

    folder: Path
    days: float = 0.0
    """Since the certificates were made."""
    workers: Workers = attrs.field(factory=Workers)
    events: list[tuple[str, str, str, Mapping[str, Any]]] = attrs.field(factory=list)
    reloader: Reloader = attrs.field(init=False)
    keeper: CertificateKeeper = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        def tell(kind: str, level: str, text: str, facts: Mapping[str, Any]) -> None:
            self.events.append((kind, level, text, facts))

        self.reloader = Reloader(
            load=lambda: load(self.folder / "gate.toml", environ={}, credentials=None),
            binder=Binder(),
            publisher=self.workers,
            beside=Beside(),
            tell=tell,
        )
        self.keeper = CertificateKeeper(
            reloader=self.reloader, tell=tell, clock=lambda: pki.NOW.timestamp() + self.days * 86400
        )

    def put(self, name: str, leaf: pki.Leaf, *, cert: bool = True, key: bool = True) -> None:
        """A pair's files, or one of them."""
        if cert:
            (self.folder / f"{name}.crt").write_text(leaf.chain)
        if key:
            (self.folder / f"{name}.key").touch(mode=0o600)
            (self.folder / f"{name}.key").write_text(leaf.private)

    async def start(self, text: str = TEXT) -> None:
        """The first generation."""
        (self.folder / "gate.toml").write_text(text)
        loaded = load(self.folder / "gate.toml", environ={}, credentials=None)
        assert (await self.reloader.start(loaded)).ok

    def names(self) -> list[tuple[str, ...]]:
        """What the certificates that serve are for."""
        tls = self.workers.served[-1].listeners["web"].tls
        return [] if tls is None else [pair.names for pair in tls.certificates]

    def told(self) -> list[tuple[str, str, str]]:
        """Kind, level and text of the events since the last call."""
        events, self.events = self.events, []
        return [event[:3] for event in events]

    async def until(self, holds: Callable[[], object]) -> None:
        """Returns once it holds. Files are read in real threads, for which a clock that jumps does not wait."""
        with trio.fail_after(1e9):
            while not holds():
                await trio.sleep(0.1)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    made.put("one", pki.make("one.example"))
    made.put("two", pki.make("two.example"))
    await made.start()
    yield made
    made.reloader.close()


@pytest.fixture
async def watched(house: House, nursery: trio.Nursery) -> House:
    """The same, its files watched. Who takes it takes a clock that jumps as well."""
    nursery.start_soon(house.keeper.watch_forever)
    return house


# -- changes --------------------------------------------------------------------------------------------------------


async def test_a_renewed_pair_serves_as_a_generation_of_its_own(watched: House, autojump_clock: Clock) -> None:
    renewed = pki.make("one.example", "www.one.example", days=30)
    watched.put("one", renewed)
    await watched.until(lambda: len(watched.workers.served) == 2)
    assert watched.names() == [("one.example", "www.one.example"), ("two.example",)]
    await watched.until(lambda: watched.events)
    assert watched.told() == [
        (
            "certificates_reloaded",
            "info",
            "certificates taken up: one.example until 2030-01-31T00:00:00Z; generation 2 serves",
        )
    ]
    assert watched.reloader.generation == 2
    assert watched.reloader.counts == {"ok": 1, "failed": 0, "noop": 0}
    assert watched.reloader.last is not None
    assert len(watched.reloader.last.changes) == 1


async def test_nothing_happens_while_nothing_changes(watched: House, autojump_clock: Clock) -> None:
    await trio.sleep(30)
    (watched.folder / "one.crt").touch()
    await trio.sleep(30)
    assert (watched.told(), watched.reloader.generation, watched.workers.tries) == ([], 1, 1)
    assert watched.reloader.counts == {"ok": 0, "failed": 0, "noop": 0}


async def test_an_edit_of_the_config_that_nobody_asked_to_load_stays_unread(
    watched: House, autojump_clock: Clock
) -> None:
    (watched.folder / "gate.toml").write_text(TEXT.replace("respond = {}", "respond = { status = 204 }"))
    watched.put("one", pki.make("new.example"))
    await watched.until(lambda: len(watched.workers.served) == 2)
    route = watched.workers.served[-1].routes["all"]
    assert route.respond is not None
    assert route.respond.status == 200
    assert (await watched.reloader.reload()).changes == ("~ route all: respond.status 200 -> 204, for new requests",)


async def test_files_behind_a_link_to_a_folder_are_swapped_in_one_step(house: House) -> None:
    for number, name in enumerate(("old.example", "new.example")):
        made = House(house.folder / f"v{number}")
        made.folder.mkdir()
        made.put("tls", pki.make(name))
    (house.folder / "data").symlink_to("v0")
    text = TEXT.partition(", { cert")[0].replace("one.", "data/tls.") + "]\n[routes.all]\nrespond = {}\n"
    (house.folder / "gate.toml").write_text(text)
    assert (await house.reloader.reload()).ok
    before = stamps([house.folder / "data/tls.crt"])
    (house.folder / "next").symlink_to("v1")
    (house.folder / "next").rename(house.folder / "data")
    assert stamps([house.folder / "data/tls.crt"]) != before
    assert await house.keeper.renew()
    assert house.names() == [("new.example",)]


async def test_it_waits_until_whoever_writes_is_done(watched: House, autojump_clock: Clock) -> None:
    await trio.sleep(10)
    for number in range(8):
        watched.put("one", pki.make(f"n{number}.example"))
        await trio.sleep(0.4)
    await watched.until(lambda: len(watched.workers.served) == 2)
    await trio.sleep(30)
    assert watched.names()[0] == ("n7.example",)
    assert watched.workers.tries == 2


async def test_what_changed_between_the_load_and_the_first_look_is_taken_up(
    house: House, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    house.put("one", pki.make("early.example"))
    nursery.start_soon(house.keeper.watch_forever)
    await house.until(lambda: len(house.workers.served) == 2)
    assert house.names()[0] == ("early.example",)


async def test_what_a_reload_names_anew_is_watched_from_then_on(watched: House, autojump_clock: Clock) -> None:
    plain = TEXT.replace(TEXT[TEXT.index("[listeners.web.tls]") : TEXT.index("[routes.all]")], "")
    (watched.folder / "gate.toml").write_text(plain)
    assert (await watched.reloader.reload()).ok
    watched.put("one", pki.make("meanwhile.example"))
    await trio.sleep(30)
    assert len(watched.workers.served) == 2
    (watched.folder / "gate.toml").write_text(TEXT)
    assert (await watched.reloader.reload()).ok
    assert watched.names()[0] == ("meanwhile.example",)
    watched.put("one", pki.make("then.example"))
    await watched.until(lambda: len(watched.workers.served) == 4)
    assert watched.names()[0] == ("then.example",)


# -- failures -------------------------------------------------------------------------------------------------------


async def test_half_a_renewal_keeps_the_old_pair_and_is_told_once_for_each_content(house: House) -> None:
    first, second = pki.make("one.example"), pki.make("one.example")
    house.put("one", first, key=False)
    assert await house.keeper.renew()
    (kept,) = house.told()
    assert kept[:2] == ("certificate_kept", "warning")
    assert kept[2] == (
        f"listeners.web.tls.certificates[0]: {house.folder}/one.key is not the key of the certificate for one.example; "
        "what was there before goes on"
    )
    assert house.reloader.counts["failed"] == 1
    assert await house.keeper.renew()
    assert house.told() == []  # the same content
    assert [one.told for one in house.reloader.kept] == [kept[2]]  # for whoever asks later
    house.put("one", second, key=False)
    assert await house.keeper.renew()
    assert [event[0] for event in house.told()] == ["certificate_kept"]
    assert house.reloader.counts == {"ok": 0, "failed": 2, "noop": 0}
    assert house.reloader.generation == 1
    house.put("one", second, cert=False)
    assert await house.keeper.renew()
    assert [event[0] for event in house.told()] == ["certificates_reloaded"]
    assert house.reloader.counts == {"ok": 1, "failed": 2, "noop": 0}
    assert house.reloader.kept == ()


async def test_a_file_that_is_gone_keeps_its_certificate_and_the_others_are_renewed(house: House) -> None:
    (house.folder / "one.key").unlink()
    house.put("two", pki.make("two.example", "more.example"))
    assert await house.keeper.renew()
    assert house.names() == [("one.example",), ("two.example", "more.example")]
    assert sorted(event[0] for event in house.told()) == ["certificate_kept", "certificates_reloaded"]
    assert house.workers.served[-1].listeners["web"].tls is not None


async def test_what_no_worker_can_build_changes_nothing_and_is_tried_again(
    watched: House, autojump_clock: Clock
) -> None:
    watched.workers.problem = "worker 1: no such cipher"
    watched.put("one", pki.make("new.example"))
    await watched.until(lambda: watched.reloader.counts["failed"])
    assert watched.reloader.generation == 1
    assert watched.told() == [
        ("reload_failed", "error", "reload failed, generation 1 goes on: worker 1: no such cipher")
    ]
    watched.workers.problem = ""
    began = trio.current_time()
    await watched.until(lambda: len(watched.workers.served) == 2)
    assert trio.current_time() - began > RETRY / 2
    assert watched.names()[0] == ("new.example",)


async def test_a_warning_goes_with_the_certificate_that_it_was_about(house: House) -> None:
    (house.folder / "one.key").chmod(0o644)
    assert (await house.reloader.reload()).ok
    assert [text.partition("warning: ")[2][-44:] for text in house.reloader.warnings] == [
        "of this host; chmod 600 keeps the key secret"
    ]
    house.put("one", pki.make("one.example"))
    (house.folder / "one.key").chmod(0o600)
    assert await house.keeper.renew()
    assert not house.reloader.warnings
    house.put("two", pki.make("two.example", days=5))
    assert await house.keeper.renew()
    assert [text.partition("warning: ")[2] for text in house.reloader.warnings] == [
        "the certificate for two.example ends in 5 days, on 2030-01-06"
    ]


async def test_a_renewal_that_is_cancelled_leaves_the_old_generation(house: House) -> None:
    house.put("one", pki.make("new.example"))
    house.workers.pause = 60
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.keeper.renew)
        await house.until(lambda: house.workers.tries == 2)
        nursery.cancel_scope.cancel()
    assert house.reloader.generation == 1
    assert len(house.workers.served) == 1


async def test_nothing_is_renewed_once_the_gateway_stops(house: House) -> None:
    await house.reloader.stop()
    house.put("one", pki.make("new.example"))
    assert not await house.keeper.renew()
    assert house.reloader.generation == 1


async def test_before_the_first_generation_there_is_nothing_to_renew(tmp_path: Path) -> None:
    house = House(tmp_path)
    assert await house.keeper.renew()
    house.keeper.remind()
    assert house.told() == []


# -- ends -----------------------------------------------------------------------------------------------------------


async def test_each_step_towards_the_end_is_told_once(house: House) -> None:
    (house.folder / "gate.toml").write_text(TEXT.partition(", { cert")[0] + "]\n[routes.all]\nrespond = {}\n")
    assert (await house.reloader.reload()).ok
    house.told()
    seen = []
    for half_days in range(2 * 95):
        house.days = half_days / 2
        house.keeper.remind()
        seen += [(house.days, *event[1:]) for event in house.told()]
    text = "the certificate for one.example"
    end = "on 2030-04-01T00:00:00Z"
    assert seen == [
        (76.0, "warning", f"{text} ends in 14.0 days, {end}"),
        (83.0, "warning", f"{text} ends in 7.0 days, {end}"),
        (87.0, "error", f"{text} ends in 3.0 days, {end}"),
        (89.0, "error", f"{text} ends in 1.0 days, {end}"),
        (90.0, "error", f"{text} ended {end}"),
    ]


async def test_a_renewed_certificate_has_steps_of_its_own(house: House) -> None:
    house.days = 88
    house.keeper.remind()
    assert len(house.told()) == 2
    house.put("one", pki.make("one.example", days=90.5))
    assert await house.keeper.renew()
    house.told()
    house.keeper.remind()
    assert [event[2][:33] for event in house.told()] == ["the certificate for one.example e"]


async def test_a_chain_ends_with_the_first_of_its_certificates(house: House) -> None:
    ca = pki.authority(days=6)
    leaf = pki.make("one.example", issuer=ca)
    house.put("one", pki.Leaf(leaf.cert, leaf.key))
    (house.folder / "one.crt").write_text(leaf.chain + ca.chain)
    assert await house.keeper.renew()
    house.told()
    house.keeper.remind()
    assert [event[2] for event in house.told()] == [
        "the certificate for one.example ends in 6.0 days, on 2030-01-07T00:00:00Z"
    ]


# -- the API --------------------------------------------------------------------------------------------------------


async def test_the_api_names_each_certificate_and_its_end_and_no_key(house: House) -> None:
    assert house.reloader.config is not None
    tls = house.reloader.config.listeners["web"].tls
    first, second = documents(tls, pki.NOW.timestamp() + 86400)
    assert first == {
        "file": "one.crt",
        "names": ["one.example"],
        "issuer": "",
        "self_signed": True,
        "not_before": "2029-12-31T00:00:00Z",
        "not_after": "2030-04-01T00:00:00Z",
        "days_left": 89.0,
        "sha256": first["sha256"],
    }
    assert second["names"] == ["two.example"]
    assert documents(None, 0.0) == []
    assert tls is not None
    broken = attrs.evolve(tls.certificates[0], chain_pem=Secret("not PEM"))
    assert documents(attrs.evolve(tls, certificates=(broken,)), 0.0) == []


def test_the_stamp_of_a_file_tells_what_a_reading_would(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen = [stamps([path])]
    for change in (lambda: path.write_text("1"), lambda: path.chmod(0o600), lambda: os.replace(path, path)):
        change()
        seen.append(stamps([path]))
    assert seen[0] == {path: None}
    assert seen[1] != seen[0]
    assert seen[2] != seen[1]
    other = tmp_path / "b"
    other.write_text("1")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)
    assert stamps([path]) != seen[2]  # the same size and time, another file

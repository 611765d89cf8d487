"""Endpoints are told whom a client has proved to be, and never whom it says that it is; on both paths alike."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
import trio
import trustme

from tests.plane import TestPlane, serving
from tests.proxy.arrivals import answer, authority, client_context, telling_origin, write_certificate

NAMES = (b"client-cert", b"client-cert-chain", b"x-forwarded-client-cert")


@cache
def alice() -> trustme.LeafCert:
    """A client that has proved who it is."""
    return authority().issue_cert("alice.example", common_name="alice")


def der() -> bytes:
    """Her certificate."""
    return ssl.PEM_cert_to_DER_cert(alice().cert_chain_pems[0].bytes().decode())


@asynccontextmanager
async def gateway(
    folder: Path, nursery: trio.Nursery, *, lane: bool, forward: bool = True, listener: str = "", route: str = ""
) -> AsyncIterator[TestPlane]:
    """A plane that asks clients for certificates."""
    pair = write_certificate(folder, "site", "a.example")
    (folder / "ca.pem").write_bytes(authority().cert_pem.bytes())
    text = f"""
[gateway]
lane = {str(lane).lower()}
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[listeners.web.tls]
certificates = [{pair}]
client_auth = "optional"
client_ca = "ca.pem"
forward_client = {str(forward).lower()}
[filters.set]
kind = "headers"
set = {{ "x-set" = "1" }}
[routes.all]
upstream = "origin"
{route}
[upstreams.origin]
endpoints = ["127.0.0.1:{await telling_origin(nursery)}"]
"""
    with trio.fail_after(50):
        async with serving(folder, text) as plane:
            yield plane
    nursery.cancel_scope.cancel()


async def told(plane: TestPlane, *requests: bytes, certificate: bool = True) -> list[dict[bytes, bytes]]:
    """What the endpoint was told of a certificate, request by request of one connection."""
    context = client_context()
    if certificate:
        alice().configure_cert(context)
    found = []
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        stream = trio.SSLStream(raw, context, server_hostname="a.example", https_compatible=True)
        for request in requests:
            await stream.send_all(request)
            head = (await answer(stream)).partition(b"\r\n\r\n")[2]
            lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
            names = [name.lower() for name, _, _ in lines if name.lower() in NAMES]
            assert len(set(names)) == len(names), head
            found.append({name.lower(): value for name, _, value in lines if name.lower() in NAMES})
    return found


def get(*fields: bytes, host: bytes = b"a.example") -> bytes:
    """A request."""
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: " + host, *fields, b"", b""])


FALSE = (
    b"Client-Cert: :AAAA:",
    b"Client-Cert-Chain: :AAAA:",
    b"X-Forwarded-Client-Cert: Hash=00",
)


def is_hers(fields: dict[bytes, bytes]) -> bool:
    """Whether all of it is of her certificate."""
    told_of = fields.get(b"x-forwarded-client-cert", b"")
    return (
        fields.keys() == {b"client-cert", b"x-forwarded-client-cert"}
        and fields[b"client-cert"] == b":" + base64.b64encode(der()) + b":"
        and told_of.startswith(b"Hash=" + hashlib.sha256(der()).hexdigest().encode() + b';Subject="')
        and b"CN=alice" in told_of
        and told_of.endswith(b";DNS=alice.example")
    )


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("route", ["", 'filters = ["set"]'], ids=["plain", "filtered"])
async def test_an_endpoint_is_told_who_the_client_is(
    lane: bool, route: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    requests = get(), get(host=b"b.example"), get(*FALSE)
    async with gateway(tmp_path, nursery, lane=lane, route=route) as plane:
        assert [is_hers(one) for one in await told(plane, *requests)] == [True, True, True]


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("forward", [True, False])
async def test_what_a_client_says_of_itself_is_not_passed_on(
    lane: bool, forward: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with gateway(tmp_path, nursery, lane=lane, forward=forward) as plane:
        assert await told(plane, get(*FALSE), get(), certificate=False) == [{}, {}]
        if not forward:
            assert await told(plane, get(*FALSE)) == [{}]


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("forward", [True, False])
async def test_a_trusted_proxys_word_counts_unless_we_say_who_it_is(
    lane: bool, forward: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    trusted = 'trusted_proxies = ["127.0.0.1"]'
    async with gateway(tmp_path, nursery, lane=lane, forward=forward, listener=trusted) as plane:
        (fields,) = await told(plane, get(*FALSE))
    if forward:
        assert is_hers(fields)
    else:
        assert fields[b"client-cert"] == b":AAAA:"
        assert fields[b"x-forwarded-client-cert"] == b"Hash=00"

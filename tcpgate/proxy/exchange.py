"""A request's life: routed, filtered, sent to an endpoint (to another if that is safe), answered, told.

    run                 the deadline of the whole exchange around what follows
      route             which route (policy/route)
      filter            each of the route's filters says Continue, answers itself, or asks (filters/, ask.py)
      respond | forward the route's own answer, or attempts at endpoints
        pick            the balancer's choice, never one that this exchange has tried (policy/spread)
        attempt         one try (attempt.py): connect, send, receive, pass on
        may_retry       whether another try is safe (policy/retry)
      answer            errors become an answer of the gateway's own, once (answer.py)
    end                 counters and the access record: the one function that ends every exchange (account.py)

Owner: the connection's task (http.py). Cancelled (the drain is over): the record still gets written, with `drained`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import trio

from tcpgate.codec import forwarded
from tcpgate.codec.events import NO_FIELDS, Fields, RequestHead, ResponseHead
from tcpgate.config import schema
from tcpgate.errors import Bug, ClientError, GateError, Reason, Refused, Retry
from tcpgate.filters.base import Ask, RequestView, Respond
from tcpgate.net.relay import RelayOutcome
from tcpgate.policy.path import match_path
from tcpgate.policy.retry import may_retry
from tcpgate.policy.route import BadPath, Found, MethodNotAllowed
from tcpgate.proxy import account, answer, heads
from tcpgate.proxy.ask import ask
from tcpgate.proxy.attempt import Attempt
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.body import RequestBody
from tcpgate.proxy.grpc import call_of
from tcpgate.state.keys import key_of
from tcpgate.state.runtime import USABLE, EndpointRuntime, UpstreamRuntime
from tcpgate.state.snapshot import RoutePlan
from tcpgate.stats.record import AccessRecord
from tcpgate.stats.record import Attempt as AttemptRecord

if TYPE_CHECKING:
    from tcpgate.proxy.downstream import Downstream


log = logging.getLogger("tcpgate.proxy.exchange")


class Exchange:
    """One request and its response."""

    def __init__(
        self, connection: Downstream, head: RequestHead, record: AccessRecord, begun: Begun | None = None
    ) -> None:
        self.connection = connection
        self.plane = connection.plane
        self.snapshot = connection.snapshot  # read once: a reload does not change an exchange under way
        self.head = head
        self.record = record
        self.outgoing_fields = NO_FIELDS
        self.begun = begun
        """What the lane has done of it already."""
        tls = None if connection.arrived is None else connection.arrived.tls
        self.view = RequestView(head=head, client=heads.client_of(connection, head), tls=tls)
        self.view.auth = "" if connection.arrived is None else connection.arrived.identity
        self.client = record.client = self.view.client_text
        self.call = call_of(head)
        """What is different about it if it is a gRPC call."""
        self.plan: RoutePlan | None = None
        self.attempt: Attempt | None = None
        """The one under way, or the last."""
        self.tunnel: RelayOutcome | None = None
        """How the tunnel ended, if it became one."""
        self.failure: GateError | None = None
        """Why it did not go as asked."""
        self.own: Reason | None = None
        """Why the gateway answers by itself, where that is as asked."""
        limits, timeouts = connection.plan.spec.limits, connection.plan.spec.timeouts
        self.body = RequestBody(connection.stream, connection.codec, head.framing, limits.body, timeouts)
        self.scope = trio.CancelScope()
        self._failed = 0
        """Attempts that count against the policy's: a close that raced our request is none."""

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the request to its end, whatever that is. Raises nothing but Cancelled."""
        over = False
        try:
            await self._run()
            over = True
        except Bug as exc:
            await self._fail_by_bug(exc)
        except GateError as exc:
            self.failure = exc
            await answer.send_failure(self, exc)
        except Exception as exc:  # a bug must cost one exchange, not the worker, and its client still gets an answer
            await self._fail_by_bug(Bug(repr(exc)))
        finally:
            # Cancelled by a client that reset its stream, the failure is there; else only the end of a drain does that.
            if not over and self.failure is None:
                self.failure = Refused(Reason.DRAINED, "cut at the end of the drain")
                answer.send_failure_nowait(self, self.failure)
            account.end(self)

    async def _fail_by_bug(self, bug: Bug) -> None:
        log.exception("exchange failed: id=%s route=%s", self.record.id, self.record.route)
        self.failure = bug
        self.connection.is_leaving = True
        await answer.send_failure(self, bug)

    async def _run(self) -> None:
        with self.scope:
            arrived, newest = self.connection.arrived, self.plane.tls.get(self.connection.plan.name)
            if arrived is not None and not arrived.covers(self.head.host, newest):
                # The name in the handshake decided what was asked of this client; another one here would get round it.
                detail = "host: asks for more in the TLS handshake than was asked on this connection"
                raise ClientError(Reason.BAD_REQUEST, detail, status=421)
            if forwarded.passed_through(self.head.fields, self.plane.name):
                raise Refused(Reason.LOOP_DETECTED, "Via names this gateway")
            if self.head.max_forwards == 0:
                await answer.send_final_recipient(self)
                return
            self.plan = plan = self._route()
            began = trio.current_time() if self.begun is None else self.begun.routed_at
            timeout = plan.spec.timeout if self.call is None else min(plan.spec.timeout, self.call.timeout)
            self.scope.deadline = began + timeout
            if plan.filters:
                await self._filter(plan)
            if plan.spec.respond is not None or plan.spec.redirect is not None:
                await answer.send_own(self, plan.spec)
            else:
                await self._forward(self._upstream(plan))
        if self.scope.cancelled_caught:
            self._blame_silence(plan)
            who = "the route" if timeout == plan.spec.timeout else "the call's grpc-timeout"
            raise Refused(Reason.EXCHANGE_TIMEOUT, f"{who} allows {timeout:g}s")

    def _blame_silence(self, plan: RoutePlan) -> None:
        """An endpoint that said nothing in most of the exchange's time has failed, whoever's clock ran out first."""
        attempt, now = self.attempt, trio.current_time()
        if attempt is not None and attempt.is_unanswered and now - attempt.sent_at >= plan.spec.timeout / 2:
            attempt.endpoint.answered_badly("no answer in the route's time", now)

    def _route(self) -> RoutePlan:
        path = match_path(self.head.path)
        if path is None:
            raise ClientError(Reason.BAD_REQUEST, "path: escapes or segments that recipients would read differently")
        if path != self.head.path:
            # What was routed is what goes upstream, so nobody behind us can resolve the path to something else.
            self.head = self.view.head = attrs.evolve(self.head, path=path)
        head = self.head
        match = self.snapshot.table.match(
            self.connection.plan.name, head.method, head.host, path, head.fields, head.query
        )
        if isinstance(match, Found):
            self.record.route, self.record.rule = match.name, f"routes.{match.name}"
            return self.snapshot.routes[match.name]
        if isinstance(match, MethodNotAllowed):
            allow = b", ".join(match.allow)
            self.view.response.set(b"Allow", allow)
            raise Refused(Reason.METHOD_NOT_ALLOWED, f"allowed here: {allow.decode()}")
        if isinstance(match, BadPath):
            raise ClientError(match.reason, match.detail)
        raise Refused(Reason.NO_ROUTE, f"no route of listener {self.connection.plan.name} matches host and path")

    async def _filter(self, plan: RoutePlan) -> None:
        done, verdict = 0, None
        if self.begun is not None and self.begun.view is not None:
            self.view, done, verdict = self.begun.view, self.begun.filters_done, self.begun.verdict
            self.view.head = self.head
        for index, (name, filter_) in enumerate(plan.filters, 1):
            if index > done:
                verdict = filter_.on_request(self.view)
            elif index < done:
                continue
            while isinstance(verdict, Ask):
                verdict = verdict.then(await ask(self.connection, verdict.subrequest))
            if isinstance(verdict, Respond):
                self.record.rule = f"filters.{name}"
                raise verdict.error

    def _upstream(self, plan: RoutePlan) -> UpstreamRuntime:
        if self.begun is not None and self.begun.upstream is not None:
            self.record.upstream = self.begun.upstream.name
            return self.begun.upstream
        name = plan.spec.upstream
        if plan.split is not None:
            name = plan.split.choose(key_of(plan.spec.split_key, self.client, self.head))
        upstream = self.plane.runtime.upstreams.get(name or "")
        if upstream is None:
            # A reload removed the upstream between this exchange's snapshot and now.
            raise Refused(Reason.NO_ENDPOINT, f"upstream {name} has just been removed")
        self.record.upstream = upstream.name
        return upstream

    async def _forward(self, upstream: UpstreamRuntime) -> None:
        """Attempts, each at another endpoint, until one works or no further one is safe."""
        policy = upstream.spec.retry
        key = key_of(upstream.spec.hash_key, self.client, self.head) if upstream.keyed else 0
        self.body.replay = policy.replay
        self.outgoing_fields = heads.outgoing(
            self.connection, self.head, self.view.request, self.record.id, upstream.name
        )
        tried: set[str] = set()
        last: GateError | None = None
        again = None if self.begun is None else self.begun.endpoint
        while True:
            endpoint = again or upstream.pick(key, tried, trio.current_time())
            if endpoint is None:
                raise last or _none_left(upstream)
            last = await self._attempt(endpoint, upstream)
            if last is None:
                return
            again = None
            if last.retry is Retry.IF_REUSED:
                # No failure of the endpoint's: its idle connections are as stale, so it is dialled anew.
                endpoint.close_idle()
                again = endpoint
            elif last.retry is Retry.ANEW:
                again = endpoint
            else:
                tried.add(endpoint.name)

    async def _attempt(self, endpoint: EndpointRuntime, upstream: UpstreamRuntime) -> GateError | None:
        """One try; what it failed of, if another may follow. Raises what ends the exchange."""
        begun, self.begun = self.begun, None  # the first attempt's only
        attempt = self.attempt = Attempt(self, endpoint, upstream.spec, begun)
        self.record.endpoint = endpoint.name
        reason: Reason | None = None
        try:
            await attempt.run()
            reason = Reason.OK
        except GateError as exc:
            reason = exc.reason
            if not self._may_retry(exc, attempt, upstream.spec.retry):
                raise
            return exc
        except Exception:
            reason = Reason.BUG
            raise
        finally:
            if reason is None:  # cancelled
                reason = Reason.EXCHANGE_TIMEOUT if self.scope.cancel_called else Reason.DRAINED
                reason = reason if self.failure is None else self.failure.reason
            spent = (trio.current_time() - attempt.started) * 1000
            self.record.attempts.append(AttemptRecord(endpoint.name, reason, spent))
        return None

    def _may_retry(self, exc: GateError, attempt: Attempt, policy: schema.RetryPolicy) -> bool:
        if exc.retry is not Retry.IF_REUSED:
            self._failed += 1
        return may_retry(
            exc,
            method=self.head.method,
            body_replayable=self.body.replayable,
            reused=attempt.up is not None and attempt.up.reused,
            response_started=attempt.passed_on,
            attempts_made=self._failed,
            policy=policy,
        )

    # -- what the client gets ---------------------------------------------------------------------------------------

    def incoming_fields(self, response: ResponseHead) -> Fields:
        """The fields of a response, informational or final, as the client gets them."""
        if not response.informational:
            for _, filter_ in reversed(self.plan.filters if self.plan else ()):
                filter_.on_response(self.view, response)
        return heads.incoming(self.plane, response, self.view.response, self.record.id)


def _none_left(upstream: UpstreamRuntime) -> Refused:
    usable = [one for one in upstream.endpoints.values() if one.state in USABLE]
    if usable and all(one.full() for one in usable):
        return Refused(Reason.ENDPOINT_LIMIT, f"all {len(usable)} endpoints have pool.max_connections open")
    return Refused(Reason.NO_ENDPOINT, upstream.why_none())

"""Exchanges with the platform's management endpoint: enrolment, credentials and identity, on the wire and on disk."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from connectors.core import log
from connectors.core.errors import AuthenticationError, StateError, TransportError
from connectors.core.identity import Identity, StateDirectory, token_digest
from connectors.core.opamp import Answer, Enrolment, OpampClient, Report, Standing
from connectors.core.secret import Secret
from connectors.core.transport import Transport
from connectors.core.wire import WireError

_LOG = logging.getLogger(__name__)
_ROUNDS = 4
"""Exchanges that one heartbeat may take: first contact, proof of the credential, and the full state if it is asked for twice."""


class Management:
    """This instance's standing with the platform.

    Args:
        state: where identity and credential are kept.
        identity: who this instance is.
        platform_url: the platform that the credential is for.
        token: the enrolment token.
        on_credential: told whenever data can be sent under another credential than before.
    """

    def __init__(
        self, state: StateDirectory, identity: Identity, platform_url: str, token: Secret, on_credential: Callable[[], None] = lambda: None
    ) -> None:
        self.identity = identity
        self._state = state
        self._kept = state.credential(platform_url, token_digest(token.reveal()))
        self._enrolment = Enrolment(token, self._kept.current, self._kept.candidate, self._kept.copied)
        self._opamp = OpampClient(identity.uid)
        self._on_credential = on_credential
        self._lock = threading.Lock()

    @property
    def enrolled(self) -> bool:
        """Whether this instance has a proven credential."""
        return bool(self._enrolment.current)

    def bearer(self) -> Secret:
        """What data is sent under.

        Raises:
            TransportError: this instance is not enrolled yet.
        """
        if not self._enrolment.current:
            raise TransportError("this instance is not enrolled yet")
        return self._enrolment.current

    def exchange(self, transport: Transport, report: Report, now: float) -> list[Answer]:
        """Tell the platform ``report`` and do what it asks: take a credential and prove it, take an identity, tell the full state.

        Returns:
            The answers, in order.

        Raises:
            AuthenticationError: every secret that this instance holds was refused.
            TransportError: the platform is away, or says that it is not available.
        """
        answers: list[Answer] = []
        with self._lock:
            for _ in range(_ROUNDS):
                copied = bool(self._enrolment.copied)
                answer = self._exchange_once(transport, report, now)
                answers.append(answer)
                if answer.failed:
                    raise TransportError(answer.failure, retry_after=answer.retry_after)
                if answer.new_uid:
                    self._adopt(answer.new_uid)
                    report = replace(report, identifying={**report.identifying, "service.instance.id": self.identity.instance_id})
                if answer.credential:
                    self._become(self._enrolment.offered(answer.credential))
                if not (self._enrolment.candidate or self._opamp.owes_state or copied):  # without an offer for a copy, the token is next
                    break
        return answers

    def goodbye(self, transport: Transport) -> None:
        """Tell the platform that this instance stops.

        Raises:
            TransportError: it could not be told.
        """
        with self._lock:
            if self._enrolment.current:
                transport.opamp(self._opamp.goodbye(), self._enrolment.current)

    def _exchange_once(self, transport: Transport, report: Report, now: float) -> Answer:
        refusals: list[AuthenticationError] = []
        for standing, secret in self._enrolment.attempts():
            try:
                answer = self._opamp.received(transport.opamp(self._opamp.message(report, now), secret))
            except WireError as exc:
                raise TransportError(f"what answers at platform_url is not the platform: {exc}") from exc
            except AuthenticationError as exc:
                if exc.status != 401:  # noqa: PLR2004 - the secret is known, but not allowed: another would not help
                    raise
                refusals.append(exc)
                self._become(self._enrolment.refused(standing))
                log.entry(
                    _LOG, logging.WARNING, "enrolment.refused", "the platform refused a secret", shown=standing.value, refusal=exc.refusal
                )
                continue
            if not answer.failed:
                if standing is Standing.TOKEN:
                    log.entry(_LOG, logging.INFO, "enrolment.token", "introduced with the enrolment token", again=bool(refusals))
                self._become(self._enrolment.accepted(standing))
            return answer
        reason = "; ".join(dict.fromkeys(each.reason for each in refusals))
        raise AuthenticationError(reason, refusal=refusals[-1].refusal)

    def _become(self, enrolment: Enrolment) -> None:
        if enrolment == self._enrolment:
            return
        before, self._enrolment = self._enrolment, enrolment
        self._kept = replace(self._kept, current=enrolment.current, candidate=enrolment.candidate, copied=enrolment.copied)
        try:
            self._state.keep_credential(self._kept)
        except StateError as exc:
            log.entry(
                _LOG,
                logging.ERROR,
                "enrolment.keep",
                "the credential could not be kept; it lasts until this process ends",
                reason=exc.reason,
            )
        if enrolment.current != before.current:
            log.entry(_LOG, logging.INFO, "enrolment.credential", "the credential was proven and is in use")
            self._on_credential()

    def _adopt(self, uid: bytes) -> None:
        old = self.identity
        with contextlib.suppress(StateError):
            self.identity = self._state.adopt(old, uid)
        log.entry(
            _LOG,
            logging.WARNING,
            "identity.adopted",
            "the platform gave a new identity",
            old_id=old.instance_id,
            new_id=self.identity.instance_id,
        )

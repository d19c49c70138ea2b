# SPDX-License-Identifier: GPL-2.0-only
"""What is made of a HELLO: a refusal, or a place to go on from.

A HELLO may come late, from a process that has ended: two histories are declared only to
one that brings back the nonce of the first answer. Nothing of it is remembered on disk: a
later HELLO is judged anew.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bdr.common.target import admission
from bdr.common.target.admission import Refusal, Start
from bdr.common.target.answers import acknowledgement
from bdr.common.target.events import Action, Apply, LogEvent, Peer, Send
from bdr.common.target.intake import Intake
from bdr.common.target.job_queue import JOBS_MAX
from bdr.common.target.replica import Replica
from bdr.common.target.session import Admitted, Closed, Repeated, Session, SessionState
from bdr.common.target.silence import Silence
from bdr.common.target.verdict import kinship
from bdr.common.wire.control import Disown, Hello, Refused
from bdr.common.wire.reasons import RefusedReason


class Reception:
    """See the module's text.

    Args:
        replica: whose source is wanted.
        session: that a HELLO may open.
        intake: of its batches.
        silence: of the session's source.
        arrivals: of bytes of batches.
        dropped: counts refusals, by why.
        is_blank: nothing is on the device that would be lost; of interest before the first
            source only.
        nonce: random, and not 0; other for each process.
        session_s: a session silent for so long keeps no other source out.
        wrong_device: why the target's device is not opened, if so.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        session: Session,
        intake: Intake,
        silence: Silence,
        arrivals: Silence,
        dropped: Counter[str],
        is_blank: bool,
        nonce: int,
        session_s: float,
        wrong_device: str | None = None,
    ) -> None:
        self.rival: Hello | None = None
        """The last HELLO of a source whose history is another than the replica's."""
        self._replica = replica
        self._session = session
        self._intake = intake
        self._silence = silence
        self._arrivals = arrivals
        self._dropped = dropped
        self._is_blank = is_blank
        self._nonce = nonce
        self._session_s = session_s
        self._wrong_device = wrong_device
        self._admitted: Hello | None = None
        self._is_peer_lost = False

    def take(self, peer: Peer, hello: Hello) -> list[Action]:
        """What follows from a HELLO."""
        session = self._session
        if session.state is SessionState.OPENING and session.peer == peer:
            # Its WELCOME still waits for the disk: it will answer the latest attempt.
            session.fire(Repeated(hello.attempt))
            self._silence.heard()
            return []
        is_other_alive = session.peer != peer and self._is_alive
        outcome = self._judge(hello, is_other_alive=is_other_alive)
        if isinstance(outcome, Start):
            return self._admit(peer, hello, outcome)
        actions: list[Action] = []
        if is_other_alive:
            # A message to one that is not connected any more comes back as `PeerLost`.
            ack = acknowledgement(session, self._replica, self._arrivals)
            actions.append(Send(session.peer, ack))
        return actions + self.refuse(peer, hello.attempt, outcome)

    def refuse(self, peer: Peer, attempt: int, refusal: Refusal) -> list[Action]:
        """The answer to a HELLO that is not taken."""
        actions: list[Action] = []
        reason, text = refusal.reason, refusal.text
        if refusal.is_declared:
            self._dropped[f"refused-{reason.name.lower()}"] += 1
            actions.append(LogEvent("refused", {"reason": reason.name, "text": text}))
        return [*actions, Send(peer, Refused(attempt, reason, refusal.nonce, text))]

    def lost(self, peer: Peer) -> None:
        """This peer is not connected any more."""
        self._is_peer_lost |= peer == self._session.peer

    def confirmed(self) -> None:
        """The source that was admitted last goes on: it has not disowned the replica."""
        self.rival = None

    def disown(self, peer: Peer, disown: Disown) -> list[Action]:
        """The source that was admitted last found that the last batch is not its own."""
        session, replica = self._session, self._replica
        if session.peer != peer or disown.epoch != replica.record.epoch or not session.is_open:
            return []
        self.rival = self._admitted
        has_accepted = session.accepted > 0
        session.fire(Closed())
        return [] if has_accepted else [Apply(replica.disown())]

    @property
    def _is_alive(self) -> bool:
        """Whether a session is open whose source may still be there."""
        session = self._session
        return (
            session.state in (SessionState.OPENING, SessionState.OPEN)
            and not self._is_peer_lost
            and self._silence.seconds < self._session_s
        )

    def _admit(self, peer: Peer, hello: Hello, start: Start) -> list[Action]:
        self._admitted = hello
        self._nonce += 1
        actions: list[Action] = []
        if not start.is_known:
            facts = admission.describe(hello, self._replica.record, start)
            actions.append(LogEvent("unknown-position", facts))
        self._intake.forget()
        job = self._replica.begin_session(hello, start)
        self._session.fire(Admitted(peer, hello.attempt, job.number))
        self._is_peer_lost = False
        self._silence.heard()
        return [*actions, Apply(job)]

    def _judge(self, hello: Hello, *, is_other_alive: bool) -> Refusal | Start:
        record, jobs = self._replica.record, self._replica.jobs
        verdict = kinship(hello, record, is_blank=self._is_blank).verdict
        refusal = admission.refusal(
            hello,
            record,
            verdict,
            jobs_waiting=jobs.waiting,
            jobs_max=JOBS_MAX,
            wrong_device=self._wrong_device,
        )
        if refusal is not None:
            return self._declared(hello, refusal)
        if is_other_alive:
            return Refusal(
                RefusedReason.BUSY,
                f"found source {hello.source.hex()}, stream {hello.stream.hex()}, while another "
                f"session of this replica lives, of stream "
                f"{self._replica.expected.stream.hex()}; try again",
            )
        return admission.start(hello, record, verdict)

    def _declared(self, hello: Hello, refusal: Refusal) -> Refusal:
        if refusal.reason is not RefusedReason.TWO_HISTORIES:
            return refusal
        is_confirmed = hello.nonce == self._nonce
        if is_confirmed:
            self.rival = hello
        return replace(refusal, nonce=self._nonce, is_declared=is_confirmed)

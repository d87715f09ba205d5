"""CodesRoute: the way of one stream's messages to the codec, through Triton or past it.

A message that comes between a stream's first and its last may go past Triton once the codec has claimed the stream (codes_channel.py).
While its claim is expected, such messages wait for it. Through Triton they would arrive behind the one that is claimed, so no sooner,
and each would be one more request to a codec that is behind with its requests: then every stream would send more of them, and the codec
would stay behind.
"""

from __future__ import annotations

from engine_lib.serving.backend import Reply, Tensors
from engine_lib.serving.codes_channel import CodesOutlet


class CodesRoute:
    """The messages of one stream, in order. Never called by two threads at a time, but for `add_claim`.

    Attributes:
        place: of the next message.
        channel: where the codec may claim the stream; "": nowhere.
    """

    def __init__(self, stream_key: str, reply: Reply, outlet: CodesOutlet | None) -> None:
        """`outlet`: sends messages past Triton; None: all go through it."""
        self._stream_key, self._reply, self._outlet = stream_key, reply, outlet
        self.channel = "" if outlet is None else outlet.address
        self.place = 0
        # time.monotonic() when the last message went through Triton; of the claimed one: when the codec had it
        self._through_triton_at = 0.0
        self._offered_at = 0.0  # time.monotonic() when a message that the codec may claim went through Triton; 0.0: none has
        self._waiting: list[Tensors] = []  # for the claim

    def send(self, message: Tensors, now: float, *, is_final: bool = False, may_pass: bool = True) -> None:
        """Send the next message, or let it wait for the claim.

        Args:
            now: time.monotonic().
            may_pass: it may go past Triton; the last one may not.
        """
        self.place += 1
        outlet = self._outlet if may_pass else None
        if outlet is not None and self._offered_at and outlet.expects_claim(self._stream_key, now - self._offered_at):
            self._waiting.append(message)
            return
        self.send_waiting()
        is_between = outlet is not None and now < self._through_triton_at + outlet.seconds_past_triton
        if outlet is None or not is_between or not outlet.send(self._stream_key, message):
            self._through_triton_at = now
            if not self._offered_at and may_pass and message["codes"].size:
                self._offered_at = now
            self._reply.send(message, is_final=is_final)

    def add_claim(self, now: float) -> None:
        """Let others know how long the claim took that has come. On any thread."""
        if self._outlet is not None and self._offered_at:
            self._outlet.claim_times.add(now - self._offered_at)
            self._through_triton_at = now

    def send_waiting(self) -> None:
        """Send what has waited for the claim: past Triton if that has come, else through it."""
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            if self._outlet is None or not self._outlet.send(self._stream_key, message):
                self._reply.send(message, is_final=False)

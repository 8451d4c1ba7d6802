"""Frames on the wire, sans I/O: values to bytes and back.

A frame is a 4-byte big-endian length and a msgpack array (`core.model`). msgspec does the msgpack: it decodes
straight into the typed structs and checks every element on the way, so no byte sequence gets past it that is not
a well-formed frame. It knows no sockets.

Invariant: `Decoder.feed` yields exactly the frames that were encoded, however the bytes are cut, or raises
`BadMessage`, after which the stream is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from limiter_node.core.errors import UNDECODABLE, BadMessage
from limiter_node.core.model import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 6
FRAME_BYTES_MAX = 1 << 20
"""1,000 checks with the longest names and keys take 0.7 MB."""

_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """One frame, length included."""
    buffer = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(frame, buffer, _LENGTH_BYTES)
    size = len(buffer) - _LENGTH_BYTES
    assert size <= FRAME_BYTES_MAX, f"a frame of {size} bytes: CHECKS_PER_FRAME_MAX does not bound it"
    buffer[:_LENGTH_BYTES] = size.to_bytes(_LENGTH_BYTES, "big")
    return bytes(buffer)


class Decoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes, in order; raises `BadMessage` at the first that is none."""
        buffer = self._buffer
        buffer += data
        start = 0
        with memoryview(buffer) as view:
            while len(view) - start >= _LENGTH_BYTES:
                size = int.from_bytes(view[start : start + _LENGTH_BYTES], "big")
                if size > FRAME_BYTES_MAX:
                    raise BadMessage(f"a frame of {size} bytes; allowed: {FRAME_BYTES_MAX}")
                end = start + _LENGTH_BYTES + size
                if len(view) < end:
                    break
                yield _decode(view[start + _LENGTH_BYTES : end])
                start = end
        del buffer[:start]


def _decode(payload: memoryview) -> Frame:
    try:
        return _decoder.decode(payload)
    except UNDECODABLE as error:
        raise BadMessage(f"not a frame: {error}") from None

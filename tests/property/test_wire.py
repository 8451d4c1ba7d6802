"""Frames on the wire: what goes in comes out however the bytes are cut, and garbage is `BadMessage`, nothing else."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.cluster.wire import FRAME_BYTES_MAX, PROTOCOL, Decoder, encode
from limiter_node.core.engine import Engine
from limiter_node.core.errors import BadMessage
from limiter_node.core.limits import COUNT_MAX, PERIOD_MAX_S
from limiter_node.core.model import (
    BATCHES,
    CHECKS_PER_FRAME_MAX,
    COST_MAX,
    ENTRIES_MAX,
    ENTRY_VALUES_MAX,
    HOLDS_MAX,
    MICROS,
    NEVER,
    SECONDS_MAX,
    VALUES_PER_FRAME,
    Answer,
    Ask,
    Bucket,
    Check,
    Copies,
    Copy,
    Entry,
    Forgotten,
    Frame,
    Hello,
    Hold,
    Lent,
    Look,
    Looked,
    NotOwner,
    Op,
    Refunded,
    Returned,
    Settled,
    UnknownRule,
    Unreachable,
    Verdict,
)
from limiter_node.core.replication import COPIES_PER_FRAME
from limiter_node.core.rules import parse_rule

names = st.text("abcXYZ019._-", min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
keys = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=512).filter(
    lambda key: len(key.encode()) <= 512
)
tokens = st.integers(0, COST_MAX)
times_ns = st.integers(0, 2**63 - 1)
ids = st.integers(0, 2**63 - 1)
holds = st.one_of(st.none(), st.tuples(texts, st.integers(0, 999)))
checks = st.builds(
    Check, names | st.just(BATCHES), keys, tokens, st.one_of(st.none(), names), st.sampled_from(Op), holds
)
verdicts = st.builds(
    Verdict,
    st.booleans(),
    tokens,
    tokens,
    times_ns,
    st.one_of(st.just(NEVER), times_ns),
    times_ns,
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.one_of(st.none(), texts),
)
results = st.one_of(
    verdicts,
    st.builds(NotOwner, names),
    st.builds(UnknownRule),
    st.builds(Bucket, names, texts, tokens, tokens, tokens),
    st.builds(Forgotten),
    st.builds(Unreachable),
    st.builds(Settled, st.booleans()),
    st.builds(Refunded, tokens, tokens, tokens, times_ns),
    st.builds(Lent, texts, tokens, times_ns, tokens, times_ns, tokens, times_ns, times_ns),
    st.builds(Returned, st.integers(-1, 2**53)),
)
copies = st.builds(
    Copy,
    names,
    keys,
    names,
    tokens,
    holds=st.lists(st.builds(Hold, names, st.integers(0, 999), tokens, times_ns, st.none() | names), max_size=3).map(
        tuple
    ),
)
frames = st.one_of(
    st.builds(Hello, names, st.integers(0, 100)),
    st.builds(Ask, ids, ids, st.lists(checks, max_size=8), kept=st.lists(ids, max_size=3)),
    st.builds(
        Answer,
        ids,
        ids,
        st.lists(results, max_size=8),
        st.dictionaries(st.integers(0, 999), times_ns, max_size=3),
        st.lists(tokens, max_size=8),
    ),
    st.builds(Copies, ids, st.lists(copies, max_size=4)),
    st.builds(Look, ids, st.integers(0, SECONDS_MAX)),
    st.builds(Looked, ids, st.binary(max_size=200)),
)


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def decoded(data: bytes, cuts: list[int] | None = None) -> list[Frame]:
    """Feed the bytes, cut at the given places."""
    decoder = Decoder()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    return [frame for start, end in pairwise(edges) for frame in decoder.feed(data[start:end])]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    assert decoded(b"".join(map(encode, sent)), cuts) == sent


@given(st.lists(frames, min_size=1, max_size=3))
def test_frames_come_out_byte_by_byte_each_as_soon_as_it_is_whole(sent: list[Frame]) -> None:
    decoder = Decoder()
    for frame in sent:
        data = encode(frame)
        for byte in data[:-1]:
            assert list(decoder.feed(bytes([byte]))) == []
        assert list(decoder.feed(data[-1:])) == [frame]


def read_or_refused(data: bytes, cuts: list[int] | None = None) -> None:
    try:
        for frame in decoded(data, cuts):
            assert isinstance(frame, Hello | Ask | Answer | Copies | Look | Looked)
    except BadMessage:
        pass


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_frames_or_a_bad_message(data: bytes, cuts: list[int]) -> None:
    read_or_refused(data, cuts)
    read_or_refused(framed(data), cuts)


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_damaged_frames_are_frames_or_a_bad_message(sent: list[Frame], data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(encode, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(stream) - 1))
        stream[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        stream = stream or bytearray(1)
    read_or_refused(bytes(stream))


plain_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), texts, st.binary(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=20,
)


@given(st.one_of(plain_values, st.lists(plain_values, max_size=5).map(lambda rest: [0, *rest])))
def test_any_message_pack_is_a_frame_or_a_bad_message(value: Any) -> None:
    read_or_refused(framed(msgspec.msgpack.encode(value)))
    for tag in (0, 1, 2):
        read_or_refused(framed(msgspec.msgpack.encode([tag, 1, 1, value])))


DEEP = b"\x91" * 100_000 + b"\x00"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(DEEP, id="instead of a frame"),
        pytest.param(b"\x94\x00\xa1a\x01" + DEEP, id="after the fields of a hello"),
        pytest.param(b"\x94\x01\x01\x01\x91\x96\xa1r\xa1k\x01\xc0\x00" + DEEP, id="after the fields of a check"),
    ],
)
def test_deep_nesting_is_a_bad_message_or_ignored_and_not_a_crash(payload: bytes) -> None:
    read_or_refused(framed(payload))


BAD = {
    "empty": b"",
    "not message pack": b"\xc1",
    "a number": msgspec.msgpack.encode(5),
    "an unknown tag": msgspec.msgpack.encode([9, 1, 1, []]),
    "a hello with a bad name": msgspec.msgpack.encode([0, "a b", 1]),
    "a hello with an empty name": msgspec.msgpack.encode([0, "", 1]),
    "an ask with too few fields": msgspec.msgpack.encode([1, 1]),
    "an ask of a negative revision": msgspec.msgpack.encode([1, 1, -1, []]),
    "a check of an empty key": msgspec.msgpack.encode([1, 1, 1, [["api", ""]]]),
    "a check of a key too long": msgspec.msgpack.encode([1, 1, 1, [["api", "k" * 513]]]),
    "a check of a negative cost": msgspec.msgpack.encode([1, 1, 1, [["api", "k", -1]]]),
    "a check of too much": msgspec.msgpack.encode([1, 1, 1, [["api", "k", COST_MAX + 1]]]),
    "a check of a fraction": msgspec.msgpack.encode([1, 1, 1, [["api", "k", 0.5]]]),
    "a check of a rule too long": msgspec.msgpack.encode([1, 1, 1, [["a" * 65, "k"]]]),
    "an unknown question": msgspec.msgpack.encode([1, 1, 1, [["api", "k", 1, None, 99]]]),
    "too many checks": msgspec.msgpack.encode([1, 1, 1, [["api", "k"]] * (CHECKS_PER_FRAME_MAX + 1)]),
    "too many results": msgspec.msgpack.encode([2, 1, 1, [[4]] * (CHECKS_PER_FRAME_MAX + 1)]),
    "text that is not UTF-8": b"\x93\x00\xa1\xff\x01",
    "something after the frame": msgspec.msgpack.encode([0, "a", 1]) + b"\x00",
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_what_is_no_frame_of_ours_is_a_bad_message(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        decoded(framed(payload))


@given(st.integers(FRAME_BYTES_MAX + 1, 2**32 - 1), st.binary(max_size=3))
def test_a_length_that_is_too_large_is_refused_at_once(size: int, rest: bytes) -> None:
    good = encode(Hello("a", PROTOCOL))
    for data in (size.to_bytes(4, "big"), size.to_bytes(4, "big") + rest, good + size.to_bytes(4, "big")):
        with pytest.raises(BadMessage):
            decoded(data)


def test_the_largest_length_waits_for_its_bytes() -> None:
    assert decoded(FRAME_BYTES_MAX.to_bytes(4, "big") + b"\x00" * 100) == []


def test_frames_before_a_bad_one_are_read_and_after_it_the_stream_is_dead() -> None:
    decoder = Decoder()
    feed = decoder.feed(encode(Hello("a", PROTOCOL)) + framed(b"\xc1") + encode(Hello("b", PROTOCOL)))
    assert next(feed) == Hello("a", PROTOCOL)
    with pytest.raises(BadMessage):
        next(feed)
    with pytest.raises(BadMessage):
        list(decoder.feed(encode(Hello("c", PROTOCOL))))


def test_the_longest_frames_there_can_be_fit() -> None:
    check = Check("r" * 64, "k" * 512, COST_MAX, "s" * 64, Op.RESERVE, ("b" * 64, 999))
    ask = Ask(2**63 - 1, 2**63 - 1, [check] * CHECKS_PER_FRAME_MAX, kept=[2**63 - 1] * CHECKS_PER_FRAME_MAX)
    assert decoded(encode(ask)) == [ask]
    verdict = Verdict(False, COST_MAX, COST_MAX, 2**63 - 1, 2**63 - 1, 2**63 - 1, True, False, "backend_overload")
    spent = [COUNT_MAX * MICROS] * CHECKS_PER_FRAME_MAX
    answer = Answer(2**63 - 1, 2**63 - 1, [verdict] * CHECKS_PER_FRAME_MAX, spent=spent)
    assert decoded(encode(answer)) == [answer]


def test_the_longest_frame_of_copies_there_can_be_fits() -> None:
    hold = Hold("b" * 16, 999, COST_MAX, 2**63 - 1, "s" * 64)
    log = Entry("sliding_log", 2**31, [2**63 - 1] * ENTRY_VALUES_MAX)
    copy = Copy("r" * 64, "k" * 512, "s" * 64, 2**63 - 1, [log] * ENTRIES_MAX, (hold,) * HOLDS_MAX)
    few = Copy("r" * 64, "k" * 512, "s" * 64, 2**63 - 1, [], (hold,) * (VALUES_PER_FRAME // COPIES_PER_FRAME // 10))
    copies = Copies(2**63 - 1, [*[few] * (COPIES_PER_FRAME - 1), copy])  # all but the last are less than it takes
    assert sum(each.values for each in copies.copies[:-1]) < VALUES_PER_FRAME
    assert decoded(encode(copies)) == [copies]


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        ("100/s", 200),
        (f"{COUNT_MAX}/s", COUNT_MAX),
        ("1/d", 1_000_000),
        ("1/30d", 10_000),
        (f"1/{PERIOD_MAX_S}s", COUNT_MAX),
    ],
)
def test_every_verdict_a_rule_can_give_can_be_sent(rate: str, burst: int) -> None:
    engine = Engine(buckets_max=10)
    engine.set_rule("api", parse_rule("api", {"rate": rate, "burst": burst}), 0)
    for cost in (burst, 1, burst, COST_MAX):
        result = engine.check(Check("api", "k", cost), 0)
        answer = Answer(1, 1, [result])
        assert decoded(encode(answer)) == [answer]

"""The values that travel: a check, its outcome, and the frames that carry both between nodes.

What may live here: immutable data with no behaviour beyond naming itself. All times are nanoseconds as integers,
all token counts whole tokens. Every struct is array-like, so on the wire it is a msgpack array whose first
element is its tag: a check costs about 30 bytes and its verdict about 20.

Invariant: nothing here holds a point in time. What crosses between machines is tokens, durations and
revisions, so no clock is ever compared with another.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from limiter_node.core.adaptive.evidence import Load
from limiter_node.core.adaptive.pulse import Pulse

COST_MAX = 2**53
"""Larger costs are clamped to this: above every allowed burst (`rules.COUNT_MAX`), and safe in JSON and msgpack."""

DURATION_MAX_NS = 2**63 - 1
"""Longer waits are told as this: 292 years, and the most that fits a frame."""

NEVER = -1
"""`Verdict.retry_ns` when no amount of waiting lets the cost fit."""

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
ShortText = Annotated[str, msgspec.Meta(max_length=64)]
"""A name between nodes, which have checked it: to match the pattern again takes half the time of a `Copy`, and 0.5 of
the 0.8 us that it takes to decode a `Check`. A rule that is none is unknown, a segment that is none the default one."""

Revision = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=COST_MAX)]
Micros = Annotated[int, msgspec.Meta(ge=0)]  # millionths of a token
Place = Annotated[int, msgspec.Meta(ge=0)]
Duration = Annotated[int, msgspec.Meta(ge=0, le=DURATION_MAX_NS)]


class Op(IntEnum):
    """What is asked about a bucket or, by COMMIT and RESOLVE, about an atomic batch, see `atomic`."""

    CHECK = 0
    INSPECT = 1
    FORGET = 2
    REFUND = 3  # give `cost` back
    RESERVE = 4  # a check whose tokens are only set aside if it is allowed
    CONFIRM = 5  # spend what a batch has set aside
    CANCEL = 6  # or do not
    COMMIT = 7  # have the batch `key` spent, unless it is settled that it is not
    RESOLVE = 8  # is the batch `key` spent? If that is not settled: no, from now on
    EXPLAIN = 9
    LEND = 10  # up to `cost` tokens to the node `hold` names, see `lendings`
    RECALL = 11  # of that node: give back the lease that `hold` names
    RETURN = 12  # of the owner: take back the lease that `hold` names, of which so many tokens were granted


class Check(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """May `key` spend `cost` tokens under `rule`? `op` may ask something else about the bucket."""

    rule: ShortText
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    cost: Tokens = 1
    segment: ShortText | None = None
    op: Op = Op.CHECK
    hold: tuple[ShortText, Place] | None = None  # the atomic batch that it is part of, and its place; a lease


class LimitVerdict(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One of several limits in a verdict; the fields mean what they do there."""

    rate: str
    algorithm: str
    limit: int
    remaining: int
    reset_ns: int
    retry_ns: int


class Verdict(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=0):
    """The answer to a check; a denial is a verdict, not an error."""

    allowed: bool
    limit: int  # tokens the key can hold now: capacity x multiplier, rounded down, at least 1
    remaining: int  # whole tokens left after this check
    reset_ns: int  # until the key is full again
    retry_ns: int  # until this cost would be allowed; 0 when allowed; NEVER when it cannot be
    window_s: int  # burst / rate at multiplier 1, rounded up: `w` of the RateLimit-Policy header
    degraded: bool = False  # true when neither the owner nor its replica decided
    would_allow: bool | None = None  # the real verdict of a rule in shadow mode
    reason: str | None = None  # why denied, when not for the key's own limit
    wait_ns: int | None = None  # a leaky bucket's: how long the caller is to hold back what was granted
    limits: list[LimitVerdict] | None = None  # where the rule has several: each of them


class NotOwner(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """The asked node does not own the key; `owner` is whom its own ring names."""

    owner: str


class UnknownRule(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """No rule of that name is in force on the node that was to decide."""


class Bucket(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """A bucket as it stands, for people to look at."""

    segment: str
    algorithm: str
    limit: int
    used: int  # whole tokens, rounded up: `limit - remaining` while the bucket is not overdrawn
    remaining: int
    limits: list[LimitVerdict] | None = None  # where the rule has several


class Forgotten(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The bucket is full again, whether or not it was there."""


class Unreachable(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """The owner could not be asked to show or forget a bucket (a check gets a degraded verdict instead)."""


class Settled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Whether an atomic batch is spent, once and for all."""

    is_spent: bool


class Refunded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Tokens have been given back; the bucket as it stands now, as a `Verdict` has it."""

    tokens: int  # whole ones really given back
    limit: int
    remaining: int
    reset_ns: int


class Explanation(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    """Why a check is decided as it is: what is in force for it on the node that decides, and what the bucket has."""

    node: str
    segment: str
    segment_from: str  # who says so: the request, an entry below `keys/`, or nobody
    limits_from: str  # where the numbers are written
    limits: list[LimitVerdict]  # what cost 1 would get of each
    used: int  # whole tokens of the tightest, rounded up
    multiplier: float
    backend: str | None
    priority: int


class Lent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=9):
    """Tokens that the asker may grant, and the rest of the bucket as its owner knows it."""

    id: ShortText
    tokens: Tokens  # 0: none, not for now
    lasts_ns: Duration  # counted from when it was asked for
    limit: int
    window_s: int
    left: int  # whole tokens that are left at the owner
    reset_ns: int  # until the key is full again if all that is lent comes back unspent
    token_ns: int  # in which one token is refilled, rounded up


class Returned(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=10):
    """Of a lease that has ended: tokens that were granted under it; -1 if that is unknown, or has been told."""

    granted: int


Outcome = Verdict | UnknownRule | Bucket | Forgotten | Unreachable | Settled | Refunded | Explanation | Lent | Returned
Result = (
    Verdict
    | NotOwner
    | UnknownRule
    | Bucket
    | Forgotten
    | Unreachable
    | Settled
    | Refunded
    | Explanation
    | Lent
    | Returned
)

CHECKS_PER_FRAME_MAX = 1000
COPIES_PER_FRAME_MAX = 500
HOLDS_MAX = 100
"""Holds on one bucket at a time: at 5 ms a batch, of 20,000 a second on one key."""
VALUES_PER_HOLD = 10
MEMBERS_MAX = 1000
ENTRIES_MAX = 8
ENTRY_VALUES_MAX = 2_000
"""Two numbers of each grant in the largest `sliding_log`."""
VALUES_PER_FRAME = 10_000
"""No copy is added to a frame that has so many: with one of 8 full logs more that is 0.25 MB, and 5 ms to take in."""
BACKENDS_MAX = 1000
SECONDS_MAX = 300
FIGURES_BYTES_MAX = 900_000


class Member(msgspec.Struct, frozen=True):
    """A node of the fleet as it registers: its value under `nodes/<id>`."""

    id: str
    peer: str  # host:port that other nodes dial
    zone: str | None = None
    weight: int = 1
    version: str = ""
    boot: int = 0  # one process' life: a node that was restarted has lost its buckets


ANY_PERIOD = 0
"""Of an entry that does not say its period."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a key has spent under one limit, as its algorithm packs it: tokens and durations."""

    algorithm: ShortText
    period_s: int  # of the limit; ANY_PERIOD where it is not told
    values: Annotated[list[int], msgspec.Meta(max_length=ENTRY_VALUES_MAX)]  # none: nothing counts


BATCHES = ""
"""The rule's name in copies and checks whose key is an atomic batch: no rule is called so."""


ENDED = 0
"""The cost of a hold that has been spent or given back."""


class Hold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens of a bucket that are set aside for a check of an atomic batch."""

    batch: ShortText
    place: Place  # of the check in the batch
    cost: Tokens  # or ENDED
    left_ns: Duration  # until it is asked what has become of the batch
    segment: ShortText | None = None


class Copy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a key has spent under a rule, for a node that holds a copy of its bucket or takes it over."""

    rule: ShortText
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    segment: ShortText  # of the plan that holds the bucket, where the key has no numbers of its own
    spent: int  # millionths of a token, rounded up; FORGOTTEN_SPENT: whatever the copy says is to be forgotten
    # Where the plan is not of a single token bucket, what was spent under each limit of it; then `spent` is 0.
    account: Annotated[list[Entry], msgspec.Meta(max_length=ENTRIES_MAX)] = []
    holds: Annotated[tuple[Hold, ...], msgspec.Meta(max_length=HOLDS_MAX)] = ()

    @property
    def values(self) -> int:
        """Numbers in the account, and as many as the holds are long."""
        if not (self.account or self.holds):
            return 0  # as nearly all: a fifth of the time
        return sum(len(entry.values) for entry in self.account) + VALUES_PER_HOLD * len(self.holds)


FORGOTTEN_SPENT = -1
MICROS = 1_000_000


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First frame in each direction: who speaks, in which life, and in which version of this protocol."""

    node_id: Name
    protocol: int
    boot: int = 0


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Checks for a node that the sender, at ring `revision`, believes to own their keys.

    `traces` are the request ids, by index, of the checks that are to be told in the log of whoever decides them. With
    `helps`, the sender cannot reach the owner: the asked node passes them on, or decides as the replica. `kept` are the
    ids of answers with copies that are in the sender's memory.
    """

    id: int
    revision: Revision
    checks: Annotated[list[Check], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)]
    helps: bool = False
    traces: Annotated[dict[int, ShortText], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)] = {}
    kept: Annotated[list[int], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)] = []


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The results of the `Ask` with the same id, in its order.

    `promises` are, by index, for how long denials stay true, counted from when they were asked for (see `promises`).
    `spent` is what the key of each check has spent, rounded up, if the answer is the copy, too (see `carried`), else 0.
    """

    id: int
    revision: Revision
    results: Annotated[list[Result], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)]
    promises: Annotated[dict[Place, Duration], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)] = {}
    spent: Annotated[list[Micros], msgspec.Meta(max_length=CHECKS_PER_FRAME_MAX)] = []


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The sender is alive, at ring `revision`, and wants all that it has missed up to its `epoch` (see `custody`).

    It tells what it has counted of backends on the way.
    """

    id: int
    revision: Revision
    epoch: int
    pulses: Annotated[dict[ShortText, Pulse], msgspec.Meta(max_length=BACKENDS_MAX)] = {}


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answer to the `Ping` with the same id (see `fence`)."""

    id: int
    revision: Revision
    backs: bool  # the sender will not hold the asker for gone before a while has passed
    released: bool  # the asker has all that the sender knew of the asker's keys
    silent: list[str]  # members that the sender hears nothing of


class Pull(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The sender owns these (rule, key) at ring `revision`: what does the receiver know of them?"""

    id: int
    revision: Revision
    wanted: Annotated[list[tuple[ShortText, str]], msgspec.Meta(max_length=COPIES_PER_FRAME_MAX)]
    asked: Annotated[list[ShortText], msgspec.Meta(max_length=MEMBERS_MAX)] = []  # everybody who is still to tell it


class Pulled(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """All that the answering node knows of what the `Pull` with the same id wanted; it decides them no more."""

    id: int
    copies: Annotated[list[Copy], msgspec.Meta(max_length=COPIES_PER_FRAME_MAX)]


class Copies(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Buckets as they stand, for their replica or their new owner."""

    id: int
    copies: Annotated[list[Copy], msgspec.Meta(max_length=COPIES_PER_FRAME_MAX)]


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The `Copies` of that id are in the sender's memory; it is at ring `revision`."""

    id: int
    revision: Revision


class News(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A ring that is newer than the receiver's."""

    revision: Revision
    members: Annotated[list[Member], msgspec.Meta(max_length=MEMBERS_MAX)]
    leavers: Annotated[list[Member], msgspec.Meta(max_length=MEMBERS_MAX)]


class Gather(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The sender leads in `term` and wants to know of all backends; `shares` of each one's rate are the receiver's."""

    id: int
    term: Revision
    shares: Annotated[dict[ShortText, Fraction], msgspec.Meta(max_length=BACKENDS_MAX)]


class Gathered(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """What the sender has counted of each backend since the last `Gather`."""

    id: int
    loads: Annotated[dict[ShortText, Load], msgspec.Meta(max_length=BACKENDS_MAX)]


class Look(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Somebody looks at the fleet: what has the receiver to show of itself, and of so many of its last seconds?"""

    id: int
    seconds: Annotated[int, msgspec.Meta(ge=0, le=SECONDS_MAX)]


class Looked(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """What the sender shows, for the `Look` with the same id: `edge.figures.Figures`."""

    id: int
    figures: Annotated[bytes, msgspec.Meta(max_length=FIGURES_BYTES_MAX)]


Request = Ask | Ping | Pull | Copies | News | Gather | Look
Reply = Answer | Pong | Pulled | Ack | News | Gathered | Looked
Frame = Hello | Ask | Answer | Ping | Pong | Pull | Pulled | Copies | Ack | News | Gather | Gathered | Look | Looked

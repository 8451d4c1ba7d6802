"""Brings the documents of rules files into etcd: reads what is there, plans, writes what differs.

Every transaction asks whether each key that it writes still has the revision that was read; if one has not, nothing of
it is written, and all is read and planned again. So no change that somebody else makes meanwhile is overwritten before
it was looked at, and whatever breaks off in the middle is mended by applying the same files again.

It touches `rules/`, `keys/` and `backends/` only: what nodes, the controller and monitors write is not in files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aetcd import rpc

from limiter_node.control.changes import Change, Stored, plan
from limiter_node.control.etcd_link import LinkError, call_once, dial
from limiter_node.control.rules_file import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from limiter_node.control.etcd_link import EtcdConfig, Link

OPERATIONS_MAX = 128
"""In one transaction: etcd's own `--max-txn-ops`, if nobody has set it."""

BYTES_MAX = 1_000_000
"""Of the values of one transaction: etcd takes requests of up to 1.5 MiB."""

PAGE_KEYS = 5_000
TRIES = 5
"""How often all is read again since others changed the same keys."""


class NotApplied(Exception):
    """etcd does not hold what the files say; the message is for people, of one or more lines."""


class Listener(Protocol):
    """Who is told how it goes."""

    def planned(self, changes: Sequence[Change], transactions: int) -> None:
        """So much is to be done; told again when it is planned again."""

    def written(self, changes: Sequence[Change]) -> None:
        """These changes are in etcd, all by one transaction."""

    def crossed(self) -> None:
        """Somebody else has changed one of the keys meanwhile: all is read and planned again."""


async def apply(
    config: EtcdConfig, wanted: Mapping[str, Any], listener: Listener, *, prune: bool, dry_run: bool
) -> None:
    """Have etcd hold the documents, {`rules/<name>` and so on: document}; with `prune`, no others of these sections.

    The endpoints are tried in turn. With `dry_run` only the plan is told. Raises `NotApplied`.
    """
    failures = []
    for endpoint in config.endpoints:
        try:
            async with dial(config, endpoint) as link:
                await _Applier(link, config.prefix, wanted, listener, prune=prune).run(dry_run=dry_run)
                return
        except LinkError as exc:
            failures.append(f"  {endpoint}: {exc}")
    raise NotApplied("\n".join(["etcd could not be used; tried:", *failures]))


class _Applier:
    def __init__(self, link: Link, prefix: str, wanted: Mapping[str, Any], listener: Listener, *, prune: bool) -> None:
        self._link = link
        self._root = f"{prefix}/"
        self._wanted = wanted
        self._listener = listener
        self._prune = prune

    async def run(self, *, dry_run: bool) -> None:
        for _ in range(TRIES):
            changes = plan(self._wanted, await self._stored(), prune=self._prune)
            batches = list(_batches(changes))
            self._listener.planned(changes, len(batches))
            if dry_run or await self._write(batches):
                return
            self._listener.crossed()
        raise NotApplied(f"others keep changing the same keys, {TRIES} times in a row; apply again when they are done")

    async def _stored(self) -> dict[str, Stored]:
        """What etcd holds of the sections that matter. Pages of different revisions do no harm: writes are guarded."""
        stored: dict[str, Stored] = {}
        for section in _sections(self._wanted, prune=self._prune):
            start, end = self._raw(f"{section}/"), self._raw(f"{section}0")  # "0" comes right after "/"
            while True:
                request = rpc.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS)
                page = await call_once(self._link.kv.Range, request, self._link)
                for kv in page.kvs:
                    key = kv.key.decode(errors="surrogateescape").removeprefix(self._root)
                    stored[key] = Stored(kv.value, kv.mod_revision)
                if not page.more:
                    break
                start = page.kvs[-1].key + b"\0"
        return stored

    async def _write(self, batches: Sequence[Sequence[Change]]) -> bool:
        """Write one batch after the other; False as soon as one of them was crossed."""
        for batch in batches:
            request = rpc.TxnRequest(
                compare=[self._unchanged(change) for change in batch], success=[self._operation(c) for c in batch]
            )
            if not (await call_once(self._link.kv.Txn, request, self._link)).succeeded:
                return False
            self._listener.written(batch)
        return True

    def _unchanged(self, change: Change) -> Any:
        return rpc.Compare(
            result=rpc.Compare.EQUAL,
            target=rpc.Compare.MOD,
            key=self._raw(change.key),
            mod_revision=change.revision,
        )

    def _operation(self, change: Change) -> Any:
        key = self._raw(change.key)
        if change.after is None:
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=change.after))

    def _raw(self, key: str) -> bytes:
        return (self._root + key).encode(errors="surrogateescape")


def _sections(wanted: Mapping[str, Any], *, prune: bool) -> Collection[str]:
    """What must be read: where something is to be written or, with `prune`, deleted."""
    return SECTIONS if prune else {key.partition("/")[0] for key in wanted}


def _batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """As many changes as one transaction takes, in their order."""
    begin = size = 0
    for at, change in enumerate(changes):
        grown = size + len(change.key) + len(change.after or b"")
        if at - begin == OPERATIONS_MAX or (at > begin and grown > BYTES_MAX):
            yield changes[begin:at]
            begin, grown = at, grown - size
        size = grown
    if begin < len(changes):
        yield changes[begin:]

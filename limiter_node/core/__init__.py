"""The pure core: time comes in as an argument, decisions go out as values.

Nothing here imports a loop, a socket, a clock, a log or a random source; `tests/unit/test_structure.py`
keeps it so. That is what lets a whole fleet run in one thread of virtual time (`tests/sim`).

Reading order: `model` (the values), `algorithms/token_bucket` (the law), `table` (many buckets of one plan),
`rules` (what people write), `engine` (a check on this node), `ring` (who owns a key), `router` (a check on
the fleet).
"""

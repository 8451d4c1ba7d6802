"""How the limiter grows, measured as far as one machine goes, simulated and computed beyond; `./scripts/bench scale`.

keys        10^5 to 10^7 keys on one real node: bytes a key, the longest stall of its loop, the start of a hand-over
fleets      1 to 12 real nodes on one core: processor time at rest and per check
traffic     3 to 60 simulated nodes in virtual time: frames and bytes between nodes, by what they are for
rings       3 to 1,000 nodes, computed: how even the product's own ring is, what moves, how long it takes to build
watchers    a real etcd and up to 1,000 watches: how soon a change has reached all, and what that costs etcd
projection  what one node, a rack and 1,000 nodes carry, and what gives out first, computed from all of these
report      scale.md, its pictures and scale.json
"""

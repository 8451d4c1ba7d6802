"""What the limiter costs, as ratios against servers measured beside it; ./scripts/bench runs it.

machine     what the figures were measured on
servers     starts and stops nodes, nginx, the aiohttp application and etcd, each pinned to a core
load        drives one server with wrk and reads the result
memory      bytes per key, and that they are given back
entries     100,000 entries below keys/: load, memory, change
run         the figures: interleaved runs, ratios of medians, the table
aiohttp_app the ordinary way to write the same answer, to compare with
"""

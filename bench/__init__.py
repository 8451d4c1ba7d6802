"""What the limiter costs, beside what one would use instead; ./scripts/bench runs it and says how long it takes.

machine      what the figures were measured on
servers      starts and stops processes, each pinned to a core; what is under test is a `System` of them
systems/     the systems, a module each, all with one face
load         drives one system with wrk (closed loop) and reads the result
open_loop    asks at fixed rates, whatever the answers do
stats        least, median and most; ratios of interleaved runs
comparison   subjects driven in turn, and the ratios taken from them
speed        this node beside others, and asked in other ways
hot          one key that everybody asks for
workers      several processes as one node
latency      time to answer at fixed rates
memory       bytes per key of a node, and that they are given back
footprint    bytes per key of every system
run          the command: its parts, and how long each takes
session      one run of a command: parts in turn, failures, the report
report       speed.md, its pictures (plots, svg) and tables (markdown)
scale/       how it grows: keys on one node, nodes of a fleet, and 1,000 nodes; `./scripts/bench scale`
entries      100,000 entries below keys/: load, memory, change
algorithms   what the algorithms grant, hold and take
adaptive/    the laboratory of adaptive throttling
"""

"""A distributed rate limiter: any node answers, one node owns each key, counts are exact.

A map of the package, in reading order:

    core/        pure: time comes in, decisions go out; no I/O, no clock, no randomness
    cluster/     node to node: frames, links, membership of the ring
    control/     what etcd or a rules file holds: session, rulebook, and the way from files to etcd
    edge/        what the outside touches: check API, admin API, metrics
    app          builds every object, starts and stops them; parts: `listeners`, `fleet`, `collector`, `gathering`
    supervisor   runs the workers of a node that has several
    settings     one node's options, parsed and validated at once
    cli          the commands; `applying` and `status` are what two of them say
"""

__version__ = "0.1.0"

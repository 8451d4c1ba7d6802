"""Builds the package; with LIMITER_NODE_COMPILE=1 what every check goes through is compiled by mypyc.

Compiled, a node takes about half the time for the Python of a check; it is the same code and does the same. That needs
a C compiler, Python's headers and the extra `compile`, so it is left to who asks for it (README, "Run it").

What mypyc asks of a module that is compiled: its classes have no base that is not compiled (no `msgspec.Struct`, no
`asyncio.Protocol`) and are not patched; what may be deleted is in `__deletable__`; what comes from code that is not
compiled is of the types it is said to have, which is checked.
"""

import os

from setuptools import setup

COMPILED = [
    f"limiter_node/{name}.py"
    for name in (
        "clock",
        "core/algorithms/face",
        "core/algorithms/fixed_window",
        "core/algorithms/leaky_bucket",
        "core/algorithms/sliding_log",
        "core/algorithms/sliding_window",
        "core/algorithms/token_bucket",
        "core/algorithms/wall_windows",
        "core/commitments",
        "core/custody",
        "core/deeds",
        "core/denials",
        "core/engine",
        "core/entries",
        "core/failover",
        "core/fence",
        "core/heavy_hitters",
        "core/in_force",
        "core/joint_plan",
        "core/keeper",
        "core/leases",
        "core/lendings",
        "core/links",
        "core/outlet",
        "core/plan",
        "core/promises",
        "core/replication",
        "core/ring",
        "core/router",
        "core/service",
        "core/shortcut",
        "core/table",
        "core/token_plan",
        "edge/answers",
        "edge/backlog",
        "edge/batch",
        "edge/check_api",
        "edge/check_log",
        "edge/http",
        "edge/http_server",
        "edge/intake",
        "edge/tally",
        "cluster/wire",
    )
]

modules = []
if os.environ.get("LIMITER_NODE_COMPILE") == "1":
    from mypyc.build import mypycify

    modules = mypycify(COMPILED, opt_level="2", debug_level="0", group_name="limiter_node")

setup(ext_modules=modules)

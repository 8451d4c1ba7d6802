"""The systems measured beside each other, a module each, all with one face: start on a Stage, get a `System`.

limiter        this node: alone, and two of a fleet, one of which passes checks on to the other
nginx          `return 200`, the floor of HTTP on a machine, and `limit_req`
envoy          the local rate limit filter
applications   what users write themselves: aiohttp_app.py on each of its stores, with a Redis where it needs one

Whoever adds one: answer `GET /v1/check?rule=...&key=...` with 200, keep a bucket for each key, and never deny what
`Numbers` allow.
"""

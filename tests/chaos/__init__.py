"""Real fleets hurt on purpose, under load, and held to the promises of the contract's section 5.

Each case is a function that starts what it needs, does the harm, and fills in a `Report`; `scripts/chaos` runs all of
them and prints a table. In reading order: `report` (what a case says), `load` (checks at a steady rate), `cases`
(processes killed, frozen, rolled), `wire` and `hosts` (machines and links between them, made of network namespaces),
`link_cases` (links cut and slowed), `catalogue` (every case by its name).
"""

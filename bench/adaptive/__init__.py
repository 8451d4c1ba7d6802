"""The laboratory: backends, clients and a fleet of nodes in virtual time, and throttling laws side by side in it.

scenario     what happens in a run, as data; `fitting` and `judged` hold the two sets, kept apart
clients      who asks and when: one stream a scenario and seed, the same for every controller
plant        a backend: servers, a queue, a capacity that changes
world        the event loop that joins clients, a controller and a backend
trace        what is written down of a run
fleet        limiter nodes with their gates, a leader with the law, and what can go wrong between them
controllers  every controller by name: the fleet, peers (`peers_*`) and controls
metrics      figures of a run, and their intervals
tuning       parameters of the peers, picked on the fitting set
plots        small SVG pictures
report       tables
"""

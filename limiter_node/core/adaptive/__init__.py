"""Adaptive throttling, pure: what a backend can take, and who may use it. Time comes in as an argument.

evidence   what is known of a backend: load seen by nodes, outcomes, signals; mergeable
sketch     latencies as a mergeable sketch with quantiles within 1 %
law        the controller's law: evidence in, a decision a second out
gate       a node's part: its share of the decided rate by priority, and its own guard
"""

"""Adaptive throttling, pure: what a backend can take, and who may use it. Time comes in as an argument.

evidence   what is known of a backend: load seen by nodes, outcomes, signals; mergeable
sketch     latencies as a mergeable sketch with quantiles within 1 %
law        the controller's law: evidence in, a decision a second out
  view       what it sees at a tick
  symptoms   how bad that is
  capacity   what the backend is taken to be able to answer
  baseline   what is normal for the backend
  diagnosis  two tests against a wrong diagnosis
  shares     a rate divided among priorities
gate       a node's part: who is let through
  ration     its share of the decided rate, by priority
  guard      its bound of what is out at the backend, without a controller
  pulse      what nodes tell each other for it, with every ping
  normal     what is normal at the backend
  flow       what comes back of what was sent
  steering   how much it lets in while times are tight
"""

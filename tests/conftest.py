"""Hypothesis profiles: `dev` is quick, `ci` (when CI is set) looks deeper; both print how to repeat a failure.

A run that is ended by SIGTERM ends like one ended by Ctrl-C, so that fixtures still end the processes they started.
"""

import os
import signal

from hypothesis import HealthCheck, settings

# No deadline and no health check on time: a busy machine is no failure of the product.
for _name, _examples in (("dev", 60), ("ci", 150)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("ci" if os.environ.get("CI") else "dev")

signal.signal(signal.SIGTERM, signal.default_int_handler)

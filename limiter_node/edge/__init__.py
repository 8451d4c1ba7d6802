"""What the outside touches: the check API, the admin API, metrics."""

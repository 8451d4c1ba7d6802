"""One law per module, each a set of pure functions over a packed state."""

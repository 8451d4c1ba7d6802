"""Node to node: frames on the wire, one link per peer, and who is a member of the fleet."""

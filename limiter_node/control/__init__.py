"""What the fleet is told: the etcd session, the rules file of a single node, the rulebook both write to."""

"""What a model made, judged: pictures by measurements that need no weights but its own, and a run while it goes."""

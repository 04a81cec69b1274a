"""Experiments: real data, the literature's networks, methods, plans, and the runs they make."""

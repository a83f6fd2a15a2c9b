"""Peers in one process: the real exchange over a network that is as bad as one likes, or gossip in step."""

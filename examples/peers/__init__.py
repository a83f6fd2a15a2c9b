"""Peers in small: four processes on loopback that fine-tune one adapter, though they come late, die and are cut off."""

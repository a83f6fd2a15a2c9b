"""A deployment in small: a server and three sites as processes of their own, over mutual TLS on loopback."""

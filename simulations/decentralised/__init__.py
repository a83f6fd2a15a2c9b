"""With a server, without one, and in one place: quality against bytes and wall time."""

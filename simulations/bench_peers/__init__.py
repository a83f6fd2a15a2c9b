"""What equals without a server cost: bytes of a scalar, of a newcomer, and rounds until all agree."""

"""The wire: parts to protobuf bytes and back, with every check between."""

from fedpeft.wire.payload import VERSION, Header, PartSize, inspect, largest, pack, unpack

__all__ = ["VERSION", "Header", "PartSize", "inspect", "largest", "pack", "unpack"]

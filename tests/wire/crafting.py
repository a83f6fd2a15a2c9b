"""Payloads for the tests: one of each kind, and altered ones whose checksum is right."""

import hashlib

import numpy as np

from fedpeft import wire
from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Field, Numbers, Plane, Symbols

RUN, FINGERPRINT = bytes(range(16)), bytes(range(32))


def header(numel=1, codec="Ternary()"):
    return wire.Header(FINGERPRINT, RUN, 3, 2, codec, numel)


def plane(positions, numel):
    """A plane of these set bits."""
    bits = np.zeros(numel, np.uint8)
    bits[np.asarray(positions, np.int64)] = 1
    return Plane(np.packbits(bits, bitorder="little"), numel)


def field_of(part, **more):
    """The field that a part follows exactly."""
    match part:
        case Plane(numel=n):
            return Field("plane", n, **more)
        case Symbols(values=v, levels=levels):
            return Field("symbols", v.size, levels=levels, **more)
        case Numbers(values=v):
            return Field("numbers", v.size, dtype=v.dtype.name, **more)


def packed(part, name="part", **more):
    """Payload, header and layout of one part alone."""
    field = field_of(part, **more)
    return wire.pack(header(field.numel), {name: part}), header(field.numel), {name: field}


def content_of(data):
    return pb.Content.FromString(pb.Payload.FromString(data).content)


def sealed(content):
    """A payload of this content, with the checksum that it must have."""
    body = content if isinstance(content, bytes) else content.SerializeToString(deterministic=True)
    return pb.Payload(checksum=hashlib.sha256(body).digest(), content=body).SerializeToString(deterministic=True)


def altered(data, change):
    """The payload after `change(content)`, with the right checksum, so that the checks behind it are reached."""
    content = content_of(data)
    change(content)
    return sealed(content)


def coder(data):
    """The coder of the payload's first part."""
    return wire.inspect(data)[1][0].coder

"""The adapter that all sites hold, and the steps by which it moves.

What the server broadcasts is lossy, so the server keeps two vectors: its own global adapter, and the *public* adapter
that a site has after decoding everything it was sent. Each round the encoded difference of the two moves the public
one, so whatever a codec loses is part of the next difference (Richtárik, Sokolov and Fatkhullin, 2021, arXiv
2106.05203, apply the same idea to gradients). The public adapter is rounded to fp16 after every step, so that a site
that follows every step and a site that gets the whole in fp16 hold the same bits.
"""

from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels, wire
from fedpeft.codecs import Codec, Context, Identity, Parts
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space
from fedpeft.ternary import TernaryDelta

WHOLE: Codec = Identity("float16")
WHOLE_BYTES = 2  # a parameter
LARGEST = 65504.0  # of fp16


def advance(public: Float[Tensor, " d"], decoded: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The public adapter after a step, on the server and on every site alike."""
    return (public + decoded).clamp(-LARGEST, LARGEST).half().float()


def context(
    codec: Codec,
    seed: int,
    round_number: int,
    client: int,
    public: Float[Tensor, " d"],
    before: Float[Tensor, " d"] | None,
) -> Context:
    """The context of an update, with those of the last two public adapters that its codec reads."""
    start = public if "start" in codec.reads else None
    return Context(seed, round_number, client, start=start, before=before if "before" in codec.reads else None)


def pack(parts: Parts, codec: Codec, space: Space, run: bytes, ctx: Context) -> bytes:
    """Encoded parts as the payload of a round and a sender."""
    return wire.pack(wire.Header(space.fingerprint, run, ctx.round, ctx.client, repr(codec), space.numel), parts)


def unpack(payload: bytes | memoryview, codec: Codec, space: Space, run: bytes, ctx: Context) -> Float[Tensor, " d"]:
    """The vector of a payload that came from outside.

    Raises:
        PayloadError: the bytes are not the payload that this receiver expects.
    """
    return decoded(parts(payload, codec, space, run, ctx), codec, space, ctx)


def parts(payload: bytes | memoryview, codec: Codec, space: Space, run: bytes, ctx: Context) -> Parts:
    """The parts of a payload that came from outside.

    Raises:
        PayloadError: the bytes are not the payload that this receiver expects.
    """
    expected = wire.Header(space.fingerprint, run, ctx.round, ctx.client, repr(codec), space.numel)
    return wire.unpack(payload, expected, codec.layout(space))


def decoded(came: Parts, codec: Codec, space: Space, ctx: Context) -> Float[Tensor, " d"]:
    """The vector of parts that came from outside.

    Raises:
        PayloadError: they contradict each other, or stand for what is not finite.
    """
    vector = codec.decode(came, space, ctx)
    if not kernels.all_finite(vector.numpy()):
        raise PayloadError(Defect.NON_FINITE, f"{codec!r} decoded to infinity or NaN")
    return vector


def received(
    payload: bytes | memoryview, codec: Codec, space: Space, run: bytes, ctx: Context
) -> Float[Tensor, " d"] | TernaryDelta:
    """The vector of a payload, as bit planes where it is ternary.

    Raises:
        PayloadError: the bytes are not the payload that this receiver expects.
    """
    came = parts(payload, codec, space, run, ctx)
    planes = codec.planes(came, space, ctx)
    if planes is None:
        return decoded(came, codec, space, ctx)
    if not kernels.all_finite(planes.scales):
        raise PayloadError(Defect.NON_FINITE, f"{codec!r} decoded to infinity or NaN")
    return planes


def largest(codec: Codec, space: Space) -> int:
    """The most bytes that a payload of this codec can have."""
    header = wire.Header(space.fingerprint, bytes(16), 1 << 31, 1 << 31, repr(codec), space.numel)
    return wire.largest(codec.layout(space), header)


def whole(public: Float[Tensor, " d"], space: Space, run: bytes, round_number: int) -> bytes:
    """A public adapter as one fp16 payload: what a site that holds none gets."""
    ctx = Context(round=round_number)
    return pack(WHOLE.encode(public, space, ctx), WHOLE, space, run, ctx)

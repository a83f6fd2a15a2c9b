"""No strategy sees another's random words, nor a codec's."""

from fedpeft.codecs import Context as Sender
from fedpeft.strategies import Context
from fedpeft.strategies.drawing import Part, stream_of
from tests.strategies.examples import SPACE


def test_each_use_run_round_and_number_has_words_of_its_own():
    contexts = [Context(SPACE, seed=seed, round=number) for seed in (0, 1) for number in (0, 1)]
    streams = [stream_of(ctx, part, number) for ctx in contexts for part in Part for number in (0, 1, 2**32 - 1)]
    streams += [stream for part in Part for ctx in [Sender(0, 1, 1, part)] for stream in (ctx.shared, ctx.private)]
    assert len({stream.words(8).tobytes() for stream in streams}) == len(streams)
    assert stream_of(contexts[0], Part.DARE, 7) == stream_of(Context(SPACE), Part.DARE, 7)

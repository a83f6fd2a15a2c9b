"""QSGD: the quantiser of the paper, its variance, and what a hostile peer can send."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import QSGD, Context, Numbers
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, normal, there_and_back, without_type_checks

BIG = Space((Slot("a", (1 << 16,), "lora_A"), Slot("b", (3, 5000), "lora_B")))


@pytest.mark.parametrize("codec", [QSGD(), QSGD(4, 64), QSGD(127, 5), QSGD(1, 1000)], ids=repr)
def test_every_number_becomes_one_of_its_two_neighbours_in_its_buckets_norm(codec):
    x = normal(LARGE)
    y = there_and_back(codec, x, LARGE).double()
    for begin, end in pairwise(LARGE.bounds):
        for first in range(begin, end, codec.bucket):
            part = slice(first, min(first + codec.bucket, end))
            step = float(x[part].double().norm()) / codec.levels
            low = (x[part].double().abs() / step).floor()
            got = (y[part] / step).abs()
            assert ((got - low).abs() < 1e-4).logical_or((got - low - 1).abs() < 1e-4).all()
            assert (y[part] * x[part] >= 0).all()


@pytest.mark.parametrize("codec", [QSGD(), QSGD(4, 64), QSGD(64, 512), QSGD(2, 4096)], ids=repr)
def test_the_error_is_that_of_random_rounding(codec):
    x = normal(BIG)
    expected = 0.0
    for begin, end in pairwise(BIG.bounds):
        for first in range(begin, end, codec.bucket):
            part = x[first : min(first + codec.bucket, end)].double()
            step = float(part.norm()) / codec.levels
            cut = (part / step) - (part / step).floor()
            expected += float((step**2 * cut * (1 - cut)).sum())
    losses = [(there_and_back(codec, x, BIG, Context(5, r, 2)) - x).double() for r in range(1, 9)]
    error = float(torch.stack([(e @ e) for e in losses]).mean())
    assert error == pytest.approx(expected, rel=0.02)
    n, s = codec.bucket, codec.levels
    formula = (
        math.sqrt(n / 6) / s if s >= math.sqrt(n) / 2 else math.sqrt(math.sqrt(2 / math.pi) * math.sqrt(n) / s - 1)
    )
    assert math.sqrt(error) / float(x.norm()) == pytest.approx(formula, rel=0.05)


def test_whole_levels_of_the_norm_stay_as_they_are():
    space = Space((Slot("a", (4,), "a"), Slot("b", (2,), "b")))
    x = torch.tensor([3.0, 0.0, -4.0, 0.0, 0.0, -7.0])
    for number in range(1, 20):
        assert torch.equal(there_and_back(QSGD(5), x, space, Context(0, number, 1)), x)


def test_a_bucket_beyond_float32_is_named():
    x = torch.zeros(LARGE.numel)
    x[600:700] = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match="the norm of bucket 2 of the delta is beyond float32"):
        QSGD(bucket=256).encode(x, Space((Slot("a", (LARGE.numel,), "a"),)), CONTEXT)


@pytest.mark.parametrize("step", [3e38, -3e38])
def test_a_step_beyond_float32_is_refused(step):
    parts = dict(QSGD().encode(normal(SPACE), SPACE, CONTEXT))
    parts["step"] = Numbers(np.full_like(parts["step"].values, step))
    with pytest.raises(PayloadError, match="16 steps of the largest are not finite") as caught:
        QSGD().decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QSGD(0), "levels must be an integer from 1 to 127, got 0"),
        (lambda: QSGD(128), "levels must be an integer from 1 to 127, got 128"),
        (lambda: QSGD(4.0), "levels must be an integer from 1 to 127, got 4.0"),
        (lambda: QSGD(True), "levels must be an integer from 1 to 127, got True"),
        (lambda: QSGD(bucket=0), "bucket must be an integer above 0, got 0"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Bit planes agree with numpy's plain arithmetic, for every alignment of slots."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import add_ternary, pack_ternary, popcount, unpack_ternary

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 1000]


def sample(n: int, slots: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n).astype(np.float32)
    x[rng.random(n) < 0.1] = 0
    bounds = np.concatenate([[0], np.sort(rng.integers(0, n + 1, slots - 1)), [n]])
    thresholds = rng.choice(np.array([0, 0.5, 1, 3], np.float32), slots)
    return x, bounds, thresholds


@pytest.mark.parametrize("slots", [1, 2, 7, 40])
@pytest.mark.parametrize("n", SIZES)
def test_pack_equals_numpy(n: int, slots: int) -> None:
    x, bounds, thresholds = sample(n, slots, n + slots)
    mask, signs, kept, kept_l1, total_l2sq = pack_ternary(x, bounds, thresholds)
    keep = (np.abs(x) >= np.repeat(thresholds, np.diff(bounds))) & (x != 0)
    assert np.array_equal(mask, np.packbits(keep, bitorder="little"))
    assert np.array_equal(signs, np.packbits(x[keep] < 0, bitorder="little"))
    for j in range(slots):
        slot = slice(bounds[j], bounds[j + 1])
        wide = x[slot].astype(np.float64)
        assert kept[j] == np.count_nonzero(keep[slot])
        assert kept_l1[j] == pytest.approx(np.abs(wide[keep[slot]]).sum(), rel=1e-12)
        assert total_l2sq[j] == pytest.approx((wide**2).sum(), rel=1e-12)


@pytest.mark.parametrize("slots", [1, 2, 7, 40])
@pytest.mark.parametrize("n", SIZES)
def test_unpack_and_add_equal_numpy(n: int, slots: int) -> None:
    x, bounds, thresholds = sample(n, slots, n + slots)
    mask, signs, *_ = pack_ternary(x, bounds, thresholds)
    scales = np.random.default_rng(n).random(slots, np.float32)
    keep = (np.abs(x) >= np.repeat(thresholds, np.diff(bounds))) & (x != 0)
    expected = np.where(keep, np.sign(x), 0) * np.repeat(scales, np.diff(bounds))
    out = np.full(n, np.nan, np.float32)
    unpack_ternary(mask, signs, bounds, scales, out)
    assert np.array_equal(out, expected)
    start = np.random.default_rng(n + 1).standard_normal(n)
    total = start.copy()
    add_ternary(mask, signs, bounds, scales, 0.3, total)
    assert np.array_equal(total, start + 0.3 * expected.astype(np.float64))


def test_slots_share_nothing() -> None:
    x, bounds, thresholds = sample(1000, 7)
    _, _, kept, kept_l1, total_l2sq = pack_ternary(x, bounds, thresholds)
    for j in range(7):
        alone = x[bounds[j] : bounds[j + 1]]
        _, _, k, _, _ = pack_ternary(alone, np.array([0, alone.size]), thresholds[j : j + 1])
        assert k[0] == kept[j]
    again = pack_ternary(x, bounds, thresholds)
    assert np.array_equal(kept_l1, again[3])
    assert np.array_equal(total_l2sq, again[4])


def test_denormals_are_kept_and_zeros_never() -> None:
    x = np.array([0, -0.0, 1e-45, -1e-45], np.float32)
    mask, signs, kept, _, _ = pack_ternary(x, np.array([0, 4]), np.zeros(1, np.float32))
    assert (mask.tolist(), signs.tolist(), kept.tolist()) == ([0b1100], [0b10], [2])


@given(st.binary(max_size=99))
def test_popcount(plane: bytes) -> None:
    assert popcount(np.frombuffer(plane, np.uint8)) == int.from_bytes(plane, "little").bit_count()


@given(st.integers(0, 200), st.data())
def test_only_payload_errors_come_out(n: int, data: st.DataObject) -> None:
    mask = np.frombuffer(
        data.draw(st.binary(max_size=30) | st.binary(min_size=(n + 7) // 8, max_size=(n + 7) // 8)), np.uint8
    )
    signs = np.frombuffer(data.draw(st.binary(max_size=30)), np.uint8)
    out = np.empty(n, np.float32)
    try:
        unpack_ternary(mask, signs, np.array([0, n]), np.ones(1, np.float32), out)
    except PayloadError:
        return
    packed = pack_ternary(out, np.array([0, n]), np.ones(1, np.float32))
    assert np.array_equal(packed[0], mask)
    assert np.array_equal(packed[1], signs)


@pytest.mark.parametrize(
    ("mask", "signs", "defect"),
    [
        ([7], [0], Defect.SIZE),
        ([7, 0, 0], [0], Defect.SIZE),
        ([7, 4], [0], Defect.PADDING),
        ([7, 1], [], Defect.COUNT),
        ([7, 1], [0, 0], Defect.COUNT),
        ([7, 1], [16], Defect.PADDING),
    ],
)
def test_planes_that_do_not_fit(mask: list[int], signs: list[int], defect: Defect) -> None:
    planes = np.array(mask, np.uint8), np.array(signs, np.uint8)
    total = np.zeros(10)
    for call in (
        lambda: unpack_ternary(*planes, np.array([0, 10]), np.ones(1, np.float32), np.empty(10, np.float32)),
        lambda: add_ternary(*planes, np.array([0, 10]), np.ones(1, np.float32), 1.0, total),
    ):
        with pytest.raises(PayloadError) as error:
            call()
        assert error.value.defect == defect
    assert not total.any()


@pytest.mark.parametrize("bounds", [[], [0], [0, 9], [1, 10], [0, 6, 5, 10], [0, 20, 10]])
def test_refuses_bounds_that_do_not_cut(bounds: list[int]) -> None:
    edges = np.array(bounds, np.int64)
    with pytest.raises(ValueError, match="bounds: expected to rise from 0 to 10"):
        pack_ternary(np.ones(10, np.float32), edges, np.ones(max(edges.size - 1, 0), np.float32))


@pytest.mark.parametrize("threshold", [-1, np.nan])
def test_refuses_thresholds(threshold: float) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        pack_ternary(np.ones(10, np.float32), np.array([0, 10]), np.array([threshold], np.float32))


def test_refuses_a_result_it_cannot_write() -> None:
    out = np.empty(20, np.float32)[::2]
    with pytest.raises(ValueError, match="out: expected one contiguous writable"):
        unpack_ternary(np.zeros(2, np.uint8), np.zeros(0, np.uint8), np.array([0, 10]), np.ones(1, np.float32), out)

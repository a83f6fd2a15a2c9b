"""Selection in chunks agrees with a stable sort, and what was kept goes back to where it was."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import keep_largest, kept_by_slot, spread_kept
from fedpeft.kernels.largest import NEAR

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-45, -1e-45, 3.4028235e38])
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def chunked(draw):
    x = draw(hnp.arrays(np.float32, st.integers(0, 300), elements=draw(st.sampled_from([FEW, ANY]))))
    inner = draw(st.lists(st.integers(0, x.size), max_size=5))
    edges = np.array([0, *sorted(inner), x.size])
    return x, edges, np.array([draw(st.integers(0, b - a)) for a, b in pairwise(edges.tolist())])


def by_sorting(x, edges, ks):
    mask = np.zeros(x.size, bool)
    for (a, b), k in zip(pairwise(edges), ks, strict=True):
        mask[a + np.argsort(-np.abs(x[a:b]), kind="stable")[:k]] = True
    return mask & (x != 0)


@given(chunked())
def test_equals_a_stable_sort_of_each_chunk(case):
    x, edges, ks = case
    expected = by_sorting(x, edges, ks)
    mask, values, kept = keep_largest(x, edges, ks)
    assert np.array_equal(np.unpackbits(mask, bitorder="little")[: x.size], expected) and mask.size == (x.size + 7) // 8
    assert values.tobytes() == x[expected].tobytes()
    assert kept.tolist() == [int(expected[a:b].sum()) for a, b in pairwise(edges)]
    assert kept_by_slot(mask, edges).tolist() == kept.tolist()
    assert np.array_equal(spread_kept(mask, values, x.size), np.where(expected, x, 0))


@pytest.mark.parametrize("n", [NEAR - 1, NEAR, NEAR + 1, 3 * NEAR])
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.5, 1.0])
def test_chunks_near_the_size_where_the_way_changes(n, share):
    rng = np.random.default_rng(n)
    for x in (rng.standard_normal(n, np.float32), rng.integers(-3, 4, n).astype(np.float32)):
        edges, ks = np.array([0, n]), np.array([round(share * n)])
        mask, _, _ = keep_largest(x, edges, ks)
        assert np.array_equal(np.unpackbits(mask, bitorder="little")[:n], by_sorting(x, edges, ks))


@pytest.mark.parametrize("edges", [[], [0], [0, 2, 1, 3], [1, 3], [0, 4], [-1, 3]])
def test_edges_that_cut_something_else(edges):
    with pytest.raises(ValueError, match="edges: expected to rise from 0 to 3"):
        keep_largest(np.ones(3, np.float32), np.array(edges, np.int64), np.zeros(max(0, len(edges) - 1), np.int64))


@pytest.mark.parametrize("ks", [[], [-1], [4], [1, 1]])
def test_more_than_a_chunk_holds(ks):
    with pytest.raises(ValueError, match="ks: expected for each of 1 chunks 0 up to its size"):
        keep_largest(np.ones(3, np.float32), np.array([0, 3]), np.array(ks, np.int64))


@pytest.mark.parametrize(("bits", "values", "n", "defect"), [
    ([7], 2, 8, Defect.COUNT), ([7], 4, 8, Defect.COUNT), ([7], 3, 9, Defect.PADDING), ([7, 0], 3, 8, Defect.PADDING),
    ([7], 3, 2, Defect.PADDING), ([], 1, 0, Defect.COUNT),
])  # fmt: skip
def test_values_that_do_not_fit_the_mask(bits, values, n, defect):
    with pytest.raises(PayloadError) as caught:
        spread_kept(np.array(bits, np.uint8), np.ones(values, np.float32), n)
    assert caught.value.defect == defect


@pytest.mark.parametrize("bounds", [[], [0, 5, 3, 8], [0, 9], [1, 8], [0, 0]])
def test_slots_that_do_not_fit_the_mask(bounds):
    with pytest.raises(ValueError, match="bounds: expected to rise from 0 to the end of 1 bytes"):
        kept_by_slot(np.array([7], np.uint8), np.array(bounds, np.int64))

"""Every kernel is compiled once, for one kind of array."""

import numpy as np

from fedpeft import kernels
from fedpeft.kernels import jit, rans, tables


def test_warm_up_compiles_all() -> None:
    kernels.warm_up()
    assert kernels.is_warm()


def test_is_warm_sees_a_kernel_without_machine_code() -> None:
    def cold(x: int) -> int:
        return x

    jit.kernel(cold)
    try:
        assert not kernels.is_warm()
    finally:
        jit.KERNELS.pop()
    assert kernels.is_warm()


def test_read_only_and_unaligned_bytes_need_no_second_specialisation() -> None:
    symbols = np.arange(50, dtype=np.uint8)
    freq = tables.normalise(rans.histogram(symbols))
    before = [len(compiled.signatures) for compiled in jit.KERNELS]
    data = b"x" + rans.encode(symbols, freq).tobytes()
    assert np.array_equal(rans.decode(np.frombuffer(data, np.uint8, offset=1), freq, 50), symbols)
    assert [len(compiled.signatures) for compiled in jit.KERNELS] == before

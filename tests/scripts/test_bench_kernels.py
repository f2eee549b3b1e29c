"""`scripts/bench_kernels.py`: shares of the peak from what the program prints, and the program itself."""

import pytest
from bench_kernels import measure, read_run

PRINTED = """\
products\t1e9\t4e9\t1e6
transform\t0\t0\t1e6

1e11\t0.02\t0.5
2e11\t0.02\t0.1
1e11\t0.04\t0.1
"""


def test_shares_are_medians_of_what_the_peak_did_in_the_same_time() -> None:
    run = read_run(PRINTED, "avx2", threads=2)
    products, transform = run.parts
    assert run.peak_gflops == 200
    # Of 2e9 multiply-adds by two threads; the peak would have done 2e9, 4e9 and 4e9.
    assert (products.share, products.direct_share) == (0.5, 2.0)
    assert products.gflops == pytest.approx(200)
    assert products.nanoseconds == pytest.approx(10)
    assert (transform.gflops, transform.share, transform.direct_share) == (None, None, None)


@pytest.mark.slow
def test_all_parts_are_measured_beside_the_peak() -> None:
    for run in measure(1):
        names = [part.name for part in run.parts]
        assert len(names) == len(set(names)) == 18
        shares = [part.share for part in run.parts if part.share is not None]
        # The machine may be busy, even while the peak is taken.
        assert all(0.01 < share < 2 for share in shares), shares

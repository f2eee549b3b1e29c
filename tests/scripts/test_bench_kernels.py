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
    # No share is judged: the machine may be busy, in the one round that there is, with anything at all.
    for run in measure(1):
        parts = {part.name: part for part in run.parts}
        assert len(parts) == len(run.parts) == 18
        assert run.peak_gflops > 0
        assert all(part.nanoseconds > 0 for part in run.parts)
        for name, part in parts.items():
            if name.endswith("transform"):
                assert (part.gflops, part.share, part.direct_share) == (None, None, None)
                continue
            assert part.gflops is not None
            assert part.gflops > 0
            assert part.share is not None
            assert part.direct_share is not None
            # F(4x4, 3x3) makes of 144 multiplications 36; of the backbone other convolutions are a part.
            saved = part.direct_share / part.share
            if name.startswith("Winograd"):
                assert saved == pytest.approx(4)
            elif name == "CARN's backbone":
                assert 1 < saved < 4
            else:
                assert saved == pytest.approx(1)

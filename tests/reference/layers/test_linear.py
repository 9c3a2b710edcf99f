"""How rows are cut for products. That a row's bits depend on no other: tests/reference/test_invariance.py."""

from hypothesis import example, given
from hypothesis import strategies as st

from auditor.reference.layers.linear import ROW_QUANTUM, even_runs


@given(rows=st.integers(0, 5_000), quanta=st.integers(1, 40))
@example(rows=0, quanta=1)
@example(rows=513, quanta=32)
def test_runs_are_few_about_equal_and_leave_nothing_out(rows, quanta):
    most = quanta * ROW_QUANTUM
    runs = list(even_runs(rows, most))
    assert [row for run in runs for row in range(run.start, run.stop)] == list(range(rows))
    lengths = [run.stop - run.start for run in runs]
    assert len(runs) == -(-rows // most)
    assert all(length == lengths[0] and length % ROW_QUANTUM == 0 for length in lengths[:-1])
    assert all(length <= most for length in lengths)
    # The last one pays for the others' rounding, and for nothing else.
    assert not rows or lengths[0] - lengths[-1] < ROW_QUANTUM * len(runs)


@given(rows=st.integers(1, 5_000), more=st.integers(0, 100))
def test_where_all_rows_may_come_at_once_they_do(rows, more):
    assert list(even_runs(rows, rows + more)) == [slice(0, rows)]

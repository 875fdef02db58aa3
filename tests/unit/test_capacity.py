"""The capacity script: its simulation against queueing theory and against sums done by hand."""

import numpy as np
import pytest

from deploy import capacity
from deploy.capacity import Load, Service, arrivals, delays, enough_for_bursts, processes, table


def test_one_at_a_time_waits_as_long_as_pollaczek_and_khinchine_say() -> None:
    """Batches of one on one process are an M/D/1 queue: mean delay 1/r (1 + u / (2 (1 - u)))."""
    load = Load(86_400 * 7, peak=1.0, burst=1.0)
    times = arrivals(load, 4.0, np.random.default_rng(1))
    use = 0.7
    delay = delays(times, 1, Service(rate=10.0, overhead_s=0.0, max_batch=1))
    assert delay.mean() == pytest.approx(0.1 * (1 + use / (2 * (1 - use))), rel=0.05)


def test_a_batch_ends_for_all_of_it_at_once_and_takes_no_more_than_its_maximum() -> None:
    """Ten at one moment, batches of four: 4 in 0.5 s, 4 more in 1.0 s, 2 in 1.3 s."""
    delay = delays(np.zeros(10), 1, Service(rate=10.0, overhead_s=0.1, max_batch=4))
    assert delay.tolist() == pytest.approx([0.5] * 4 + [1.0] * 4 + [1.3] * 2)


def test_two_processes_share_what_waits() -> None:
    """Each takes a batch; nobody waits for a process that is busy while another is free."""
    delay = delays(np.zeros(8), 2, Service(rate=10.0, overhead_s=0.1, max_batch=4))
    assert delay.tolist() == pytest.approx([0.5] * 8)


def test_a_burst_is_worked_off_at_the_rate_that_is_left() -> None:
    """A burst's last picture waits about backlog / capacity: (arrivals - capacity) x length / capacity."""
    load, service = Load(86_400 * 10, peak=1.0, burst=6.0, burst_s=60.0), Service(20.0, 0.0, 1)
    worst_s = table(load, service, [1])[0].worst_s
    assert worst_s == pytest.approx((60 - 20) * 60 / 20, rel=0.1)


def test_the_formula_leaves_the_busiest_hour_its_reserve() -> None:
    """8.64 million a day is 100/s, 300/s at the peak; 10/s each at 70 % are 43 processes."""
    assert processes(Load(8_640_000), Service(10.0, 0.0)) == 43


def test_enough_for_bursts_is_the_fewest_that_keep_the_deadline() -> None:
    """One process less breaks it."""
    load, service = Load(200_000), Service(10.0)
    enough = enough_for_bursts(load, service, 30.0)
    tight, kept = table(load, service, [enough - 1, enough])
    assert kept.p99_s <= 30.0 < tight.p99_s


def test_a_deadline_that_nothing_can_keep_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence and exit 2."""
    with pytest.raises(SystemExit) as ended:
        capacity.main(["1000", "--rate", "1", "--within", "0.5"])
    assert ended.value.code == 2
    assert "allow more than 0.5 s" in capsys.readouterr().err


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The formula's number, the burst's, and what twice as many would do; neither is enough for an upgrade."""
    capacity.main(["200000", "--rate", "10", "--within", "30"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6.9 uploads/s in the busiest hour")
    assert lines[1].endswith("and one more for upgrades")
    assert len(lines) == 6

"""How many worker processes N uploads a day need: a formula, and a simulation of a day's peak with a burst in it.

Uploads a day and one worker's measured rate go in; processes, and the delays that uploads would see, come out. Knows
no Redis and no pictures. `python -m deploy.capacity --help` lists what can be said about the load.
"""

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DAY_S = 86_400
TARGET_USE = 0.7
"""Share of the capacity that the busiest hour may take; what is left works off bursts. A process that stands still for
an upgrade is no part of it: that takes one more."""
DEADLINE_S = 60.0

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """What arrives: uploads a day, the busiest hour as a multiple of the mean, and one burst within that hour.

    `burst` multiplies the arrivals of `burst_s` seconds, ten minutes after the hour's start.
    """

    uploads_a_day: float
    peak: float = 3.0
    burst: float = 10.0
    burst_s: float = 60.0

    @property
    def peak_rate(self) -> float:
        """Uploads a second in the busiest hour, the burst apart."""
        return self.uploads_a_day / DAY_S * self.peak


@dataclass(frozen=True)
class Service:
    """One worker process: pictures a second with full batches, seconds that a batch takes beyond that, its maximum."""

    rate: float
    overhead_s: float = 0.005
    max_batch: int = 64

    def batch_s(self, pictures: int) -> float:
        """Seconds for a batch."""
        return self.overhead_s + pictures / self.rate

    @property
    def most(self) -> float:
        """Pictures a second with nothing but full batches."""
        return self.max_batch / self.batch_s(self.max_batch)


def processes(load: Load, service: Service, use: float = TARGET_USE) -> int:
    """Worker processes so that the busiest hour takes at most the share `use` of them."""
    return max(1, math.ceil(load.peak_rate / (service.most * use)))


def arrivals(load: Load, hours: float, rng: np.random.Generator) -> Times:
    """Times in seconds of Poisson arrivals in the busiest hour, the burst among them."""
    length_s, start_s = hours * 3600, min(600.0, hours * 1800)
    base = rng.uniform(0, length_s, rng.poisson(load.peak_rate * length_s))
    extra = rng.poisson(load.peak_rate * (load.burst - 1) * load.burst_s)
    return np.sort(np.concatenate([base, rng.uniform(start_s, start_s + load.burst_s, extra)]))


def delays(times: Times, count: int, service: Service) -> Times:
    """Seconds from arrival to verdict with `count` processes; each that is free takes all that waits, up to a batch.

    First come, first served, as the stream is read. A process that finds nothing waits for the next arrival.
    """
    free = [0.0] * count
    delay = np.empty_like(times)
    next_ = 0
    while next_ < len(times):
        start = max(heapq.heappop(free), times[next_])
        waiting = int(np.searchsorted(times, start, side="right")) - next_
        batch = min(service.max_batch, waiting)
        done = start + service.batch_s(batch)
        delay[next_ : next_ + batch] = done - times[next_ : next_ + batch]
        heapq.heappush(free, done)
        next_ += batch
    return delay


@dataclass(frozen=True)
class Row:
    """A line of the table: processes, the busiest hour's use of them, and delays in seconds."""

    count: int
    use: float
    p50_s: float
    p99_s: float
    worst_s: float


def table(load: Load, service: Service, counts: Sequence[int], seed: int = 0) -> list[Row]:
    """The same arrivals against each number of processes."""
    times = arrivals(load, 1.0, np.random.default_rng(seed))
    rows = []
    for count in counts:
        delay = delays(times, count, service)
        p50, p99, worst = np.percentile(delay, (50, 99, 100)).tolist() if len(delay) else (0.0, 0.0, 0.0)
        rows.append(Row(count, load.peak_rate / (count * service.most), p50, p99, worst))
    return rows


def enough_for_bursts(load: Load, service: Service, deadline_s: float, seed: int = 0) -> int:
    """The fewest processes, from the formula's on, whose p99 delay in the busiest hour is within `deadline_s`.

    Raises ValueError where no number is: a single batch takes longer.
    """
    if service.batch_s(1) > deadline_s:
        raise ValueError(f"One picture alone takes {service.batch_s(1):.2g} s: allow more than {deadline_s:g} s.")
    low = processes(load, service)
    high = low
    while table(load, service, [high], seed)[0].p99_s > deadline_s:
        low, high = high + 1, high * 2
        if high * service.most > 10 * load.burst * load.peak_rate + 10 * service.most:
            raise ValueError(f"No number of processes is within {deadline_s:g} s: allow more, or use smaller batches.")
    while low < high:
        middle = (low + high) // 2
        if table(load, service, [middle], seed)[0].p99_s > deadline_s:
            low = middle + 1
        else:
            high = middle
    return high


def _positive(text: str) -> float:
    value = float(text)
    if not (0 < value < 1e12):
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m deploy.capacity", description="Worker processes for a load.")
    parser.add_argument("uploads_a_day", type=_positive, help="uploads a day")
    parser.add_argument("--rate", type=_positive, required=True, help="pictures a second of one worker, as measured")
    parser.add_argument("--peak", type=_positive, default=3.0, help="busiest hour / mean (%(default)s)")
    parser.add_argument("--burst", type=_positive, default=10.0, help="a burst's arrivals / that hour's (%(default)s)")
    parser.add_argument("--burst-s", type=_positive, default=60.0, help="its seconds (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="MODERATION_MAX_BATCH (%(default)s)")
    parser.add_argument("--overhead-s", type=_positive, default=0.005, help="seconds a batch beyond rate (%(default)s)")
    parser.add_argument("--within", type=_positive, default=DEADLINE_S, help="p99 delay allowed, s (%(default)s)")
    given = parser.parse_args(words)
    if given.batch < 1 or given.burst < 1:
        parser.error("--batch and --burst must be at least 1")
    load = Load(given.uploads_a_day, given.peak, given.burst, given.burst_s)
    service = Service(given.rate, given.overhead_s, given.batch)
    formula = processes(load, service)
    try:
        enough = enough_for_bursts(load, service, given.within)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{load.peak_rate:.1f} uploads/s in the busiest hour, {load.peak_rate * load.burst:.1f} for {load.burst_s:g} s"
    )
    within = f"p99 within {given.within:g} s, burst included"
    print(f"{formula} processes by the formula; {enough} for {within}; and one more for upgrades")
    print("processes     use   p50 s    p99 s   worst s")
    for row in table(load, service, sorted({formula, enough, 2 * enough})):
        print(f"{row.count:9d}  {row.use:5.0%}  {row.p50_s:6.2f}  {row.p99_s:7.2f}  {row.worst_s:8.2f}")


if __name__ == "__main__":
    main()

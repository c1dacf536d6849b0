"""The time that is left of a job, on a clock of its own: jobs whose calls and files take what is known beforehand."""

from __future__ import annotations

import pytest

from zs2_lib.hosts.webui.estimate import AFTER, BETWEEN, FULL, SAMPLING, SECOND, Estimate

POSITIONS, FULL_RATE, BETWEEN_RATE, SECOND_RATE, AFTER_RATE = 64 * 64, 2e-6, 1e-6, 3e-6, 5e-6
KNOWN = {FULL: FULL_RATE, BETWEEN: BETWEEN_RATE, SECOND: SECOND_RATE, AFTER: AFTER_RATE}
CASES = {
    "plain": dict(frames=[8]),
    "batch count": dict(frames=[8, 8, 8]),
    "segments": dict(frames=[128, 128, 40]),
    "anchors": dict(frames=[16], start=0.3),
    "karras, anchors": dict(frames=[16], start=0.3, bend=1.5),
    "hires": dict(frames=[8], second=(0.6, 4.0, 0.4)),
    "hires, anchors, batch count": dict(frames=[8, 8], start=0.5, second=(0.6, 2.25, 0.4)),
}


def run(frames, start=None, second=None, bend=1.0, known=None, calls=20):
    """A job by its own clock. Returns (what was used of it, seconds left as said then) all along, the time it took, and
    the rates that it reports.
    """
    now, said, rates = [0.0], [], {}
    job = Estimate(frames, (known or {}).get, second, start, lambda: now[0])

    def passes(seconds):
        for _ in range(4):
            said.append((now[0], job.seconds_left()))
            now[0] += seconds / 4

    for batch in frames:
        goes = [(calls, 1.0, 0.0)]
        if second:
            goes.append((round(calls * second[0]), second[1], second[2]))
        for count, times, begins in goes:
            for number in range(count):
                time = begins + (1 - begins) * (number / count) ** bend
                work = 2 * batch * POSITIONS * times
                job.call(number, count, work, POSITIONS * times, time)
                full = start is None or not number or time < start
                rate = FULL_RATE if full else BETWEEN_RATE
                passes(work * (rate if times == 1 else rate * SECOND_RATE / FULL_RATE))
        rates |= job.sampled()
        passes(batch * POSITIONS * goes[-1][1] * AFTER_RATE)
        rates |= job.batch_done()
    assert job.seconds_left() == 0
    return said, now[0], rates


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_gives_the_time_from_a_quarter_on(case):
    said, total, rates = run(**CASES[case], known=KNOWN)
    for used, left in said:
        if used >= total / 4:
            assert used + left == pytest.approx(total, rel=0.15 if "bend" in CASES[case] else 0.05)
    assert rates[FULL] == pytest.approx(FULL_RATE) and rates[AFTER] == pytest.approx(AFTER_RATE)
    if CASES[case].get("start"):
        assert rates[BETWEEN] == pytest.approx(BETWEEN_RATE) and BETWEEN_RATE < rates[SAMPLING] < FULL_RATE
    if "second" in CASES[case]:
        assert rates[SECOND] == pytest.approx(SECOND_RATE)


@pytest.mark.parametrize("case", [case for case in CASES if not ("anchors" in case or "hires" in case)])
def test_a_first_job_is_known_after_its_first_call(case):
    """But for what comes after sampling, which is guessed."""
    said, total, _ = run(**CASES[case])
    assert said[0][1] is None
    assert all(used + left == pytest.approx(total, rel=0.15) for used, left in said if used >= total / 4)


def test_a_machine_that_is_slower_today():
    """Its own calls count more than what is known."""
    said, total, _ = run([8], known={name: rate / 3 for name, rate in KNOWN.items()})
    assert all(used + left == pytest.approx(total, rel=0.15) for used, left in said if used >= total / 4)


@pytest.mark.parametrize("start", [None, 0.9])
@pytest.mark.parametrize("times", [(0.0, 0.5, 0.8, 0.85, 0.9, 1.0), (1.0,) * 6, (0.0,) * 6])
def test_a_sampler_that_calls_more_often_than_it_said(start, times):
    """As Restart does, and at times that follow no rule: it is no reason to fail."""
    job = Estimate([4], KNOWN.get, start=start)
    for number, time in enumerate(times):
        job.call(number, 3, 1000.0, 100, time)
        assert job.seconds_left() >= 0
    job.sampled()


def test_the_time_does_not_run_below_nothing():
    now = [0.0]
    job = Estimate([4], KNOWN.get, clock=lambda: now[0])
    job.call(0, 2, 1000.0, 100, 0.0)
    now[0] = 1e6
    assert job.seconds_left() > 0
    job.call(1, 2, 1000.0, 100, 0.5)
    job.sampled()
    now[0] = 2e6
    assert job.seconds_left() == 0

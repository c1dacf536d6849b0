"""The pieces of a long clip, done by its own worker and by helpers, each here a thread, without Ray."""

import threading
import time

import pytest

from zs2_lib.batch.sharing import Lost, Shared


def shared(ask, helpers=("a", "b"), **options):
    """Pieces of three results; those that are done here are marked."""
    how = {"most": 9, "hurry": True, **options}
    return Shared(lambda piece: ((piece, n, "own") for n in range(3)), lambda: helpers, ask, **how)


def by(helper, piece):
    return lambda: [(piece, n, helper) for n in range(3)]


def all_of(work, pieces):
    work.add(range(pieces), held=99)
    found = list(work.results())
    work.close()
    assert [each[:2] for each in found] == [(piece, n) for piece in range(pieces) for n in range(3)]
    return [each[2] for each in found]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("hurry", [True, False])
def test_helpers_begin_at_the_end(hurry):
    work = shared(by, hurry=hurry)
    work.add(range(6), held=2)
    until(lambda: len(work._made) == 2)
    assert set(work._made) == {4, 5}
    found = list(work.results())
    assert [each[:2] for each in found] == [(piece, n) for piece in range(6) for n in range(3)]
    assert {each[2] for each in found[-6:]} <= {"a", "b"} and not work._made and work._pieces == [None] * 6
    work.close()


@pytest.mark.parametrize("hurry", [True, False])
def test_what_helpers_fail_at_is_done_here(hurry):
    def ask(helper, piece):
        if piece % 2:
            raise Lost
        return by(helper, piece)

    assert len(all_of(shared(ask, hurry=hurry), 8)) == 24


def test_results_that_are_lost_are_made_again():
    def ask(helper, piece):
        def gone():
            raise Lost

        return gone

    work = shared(ask, helpers=("a",))
    work.add(range(4), held=3)
    until(lambda: len(work._made) == 3)
    assert [each[2] for each in work.results()] == ["own"] * 12


def test_a_helper_that_cannot_be_made_ready_is_done_without():
    def prepare(helper):
        raise Lost

    assert all_of(shared(by, prepare=prepare), 5) == ["own"] * 15


def test_a_piece_that_a_helper_is_late_with_is_done_here():
    """And what the helper makes of it then is forgotten."""
    at_work, go_on = threading.Event(), threading.Event()

    def late(helper, piece):
        at_work.set()
        go_on.wait(30)
        return by(helper, piece)

    work = shared(late, helpers=("a",))
    work.add(range(2), held=1)
    at_work.wait(30)
    assert [each[2] for each in work.results()] == ["own"] * 6
    go_on.set()
    until(lambda: not work._with)
    assert not work._made


def test_a_helper_who_has_got_a_job_is_not_waited_for():
    helpers, at_work = ["a"], threading.Event()

    def never(helper, piece):
        at_work.set()
        threading.Event().wait()

    work = shared(never, helpers=helpers, hurry=False)
    work.add(range(1), held=1)
    at_work.wait(30)
    helpers.clear()
    assert not work.is_helped and len(list(work.results())) == 3


def test_no_more_helpers_than_are_of_use():
    ready = []
    work = shared(by, helpers=range(20), most=2, prepare=ready.append)
    work.add(range(2), held=2)
    assert len(list(work.results())) == 6
    work.close()
    assert len(ready) <= 2

"""Measurements in turns, on a clock that only the test moves."""

import importlib

import pytest


@pytest.fixture
def timing(monkeypatch):
    module = importlib.import_module("_timing")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda count: None)
    return module


class Machine:
    """Gets slower with every job; the first run of each job takes ten times as long."""

    def __init__(self):
        self.now, self.slowness, self.done = 0.0, 1.0, []

    def job(self, name, seconds):
        def run():
            warm = 1 if name in self.done else 10
            self.now += seconds * self.slowness * warm
            self.slowness *= 1.1
            self.done.append(name)

        return run


def test_a_machine_that_slows_down_hurts_both_sides(timing):
    machine = Machine()
    sides = {"long": machine.job("long", 3.0), "short": machine.job("short", 1.0)}
    times = timing.in_turns(sides, seconds=100, clock=lambda: machine.now)
    assert machine.done == ["long", "short"] * (len(times["long"]) + 1)
    assert timing.ratio(times, "long", "short") == pytest.approx(3 / 1.1)
    assert timing.seconds(times)["short"] > 1


@pytest.mark.parametrize(("seconds", "rounds"), [(0.1, 3), (10, 5)])
def test_at_least_three_rounds_and_then_until_the_time_is_up(timing, seconds, rounds):
    machine = Machine()
    machine.job = lambda name, length: lambda: setattr(machine, "now", machine.now + length)
    times = timing.in_turns(
        {"a": machine.job("a", 1), "b": machine.job("b", 1)},
        seconds=seconds,
        clock=lambda: machine.now,
    )
    assert len(times["a"]) == len(times["b"]) == rounds

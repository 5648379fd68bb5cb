"""Executors for long work: results in order, items only as they are needed, and a prompt end."""

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from e3jax.devices import engines, runtime


def taken_from(items, log):
    """The items; logs each that is taken."""
    for item in items:
        log.append(item)
        yield item


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_results_are_in_order_and_items_are_taken_as_they_are_needed(workers):
    executor, log = workers and ThreadPoolExecutor(workers), []

    def slow_if_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return -number

    results = engines.ordered_map(executor, slow_if_even, taken_from(range(20), log))
    assert next(results) == 0 and len(log) == (2 * workers if workers else 1)
    assert list(results) == [-number for number in range(1, 20)]
    ahead = engines.ordered_map(executor, slow_if_even, taken_from(range(20), log), ahead=5)
    assert next(ahead) == 0 and len(log) == 20 + (5 if workers else 1)
    assert list(engines.ordered_map(executor, slow_if_even, [])) == []


def test_a_call_takes_several_items_where_its_start_is_slow():
    executor, log = ThreadPoolExecutor(1), []
    executor.together, submit = 8, executor.submit
    executor.submit = lambda *call: log.append(call) or submit(*call)
    assert list(engines.ordered_map(executor, operator.neg, range(20))) == [*range(0, -20, -1)]
    assert len(log) == 3


@pytest.mark.parametrize("fails", [True, False])
def test_what_has_not_begun_is_cancelled_when_a_call_fails_or_nobody_takes_results(fails):
    begun, may_end = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 1:
            if fails:
                raise ZeroDivisionError
            may_end.wait()
        return number

    with ThreadPoolExecutor(1) as executor:
        results = engines.ordered_map(executor, work, range(100), ahead=10)
        assert next(results) == 0
        if fails:
            with pytest.raises(ZeroDivisionError):
                list(results)
        else:
            results.close()
            may_end.set()
    assert len(begun) < 12


def test_processes_of_this_machine_work_again_after_a_failure(monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    executor = engines.local()
    assert list(engines.ordered_map(executor, operator.neg, range(9))) == [*range(0, -9, -1)]
    with pytest.raises(ZeroDivisionError):
        list(engines.ordered_map(executor, (1).__floordiv__, [1, 0, 1, 1, 1]))
    processes = set(engines.ordered_map(executor, _process, range(20)))
    assert os.getpid() not in processes and len(processes) <= 2
    executor.shutdown()
    monkeypatch.setattr(runtime, "cores", lambda: 1)
    assert engines.local() is None


def _process(number):
    return os.getpid()


STOPPED = """
import signal, time
from e3jax.devices import engines, runtime
signal.signal(signal.SIGINT, signal.default_int_handler)
runtime.cores = lambda: 2
results = engines.ordered_map(engines.local(), time.sleep, [0, 60, 60])
next(results)
print("begun", flush=True)
try:
    list(results)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_waits_for_no_call_that_has_begun():
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")

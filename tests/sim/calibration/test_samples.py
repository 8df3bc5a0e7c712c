"""Facts of live runs as samples of steps and copies; the files that keep them."""

from __future__ import annotations

from typing import Any

import pytest

from tokencake.sim.calibration.samples import CopySample, HostShare, Samples
from tokencake.sim.calibration.samples_file import read_samples, samples_text
from tokencake.traces import events as e
from tokencake.traces.apps import NO_HINTS
from tokencake.traces.errors import TraceError


def arrived(at_s: float, call: str = "a/1") -> e.CallArrived:
    return e.CallArrived(at_s, e.Request(call, "a", "a/main", "main", 100, 10, (), NO_HINTS))


def finished(at_s: float, call: str = "a/1") -> e.CallFinished:
    return e.CallFinished(at_s, call, 10, 3)


def stepped(from_s: float, at_s: float) -> e.Stepped:
    return e.Stepped(at_s, from_s, 0, 0, 1, 100)


STARTED = e.RunStarted(0.0, 16, 100, 100, 1_000)


def seconds(*facts: object) -> list[float]:
    samples = Samples()
    for fact in facts:
        samples.add(fact)
    return [round(step.seconds, 6) for step in samples.steps]


def test_what_lies_between_two_steps_belongs_to_the_later_one():
    assert seconds(arrived(1.0), stepped(1.01, 1.1), stepped(1.13, 1.2)) == [0.1, 0.1]


def test_an_idle_engine_takes_no_time():
    assert seconds(arrived(1.0), stepped(1.0, 1.1), finished(1.1), arrived(5.0), stepped(5.02, 5.1)) == [0.1, 0.1]


def test_the_end_of_a_call_may_be_reported_before_its_step():
    assert seconds(arrived(1.0), stepped(1.0, 1.1), finished(1.3), stepped(1.12, 1.3)) == [0.1, 0.2]


def test_a_call_that_follows_at_once_keeps_the_engine_busy():
    assert seconds(arrived(1.0), stepped(1.0, 1.1), finished(1.1), arrived(1.101), stepped(1.13, 1.2)) == [0.1, 0.1]


def test_steps_that_are_scheduled_ahead_follow_each_other():
    """Asynchronous scheduling: a step is scheduled while the one before it runs."""
    assert seconds(arrived(1.0), stepped(1.0, 1.1), stepped(1.02, 1.2), stepped(1.1, 1.35)) == [0.1, 0.1, 0.15]


def test_time_in_which_calls_only_wait_for_a_copy_is_no_steps_time():
    facts = [arrived(1.0), e.LoadStarted(1.0, "a/1", 3, 0), e.LoadFinished(1.5, "a/1", 3), stepped(1.5, 1.6)]
    assert seconds(*facts, stepped(1.62, 1.7)) == [0.1, 0.1]


def test_what_the_workers_do_not_take_is_the_hosts():
    """Two calls are admitted to the first step, which computes one of the prompts; both get tokens in the next."""
    samples = Samples()
    first = e.Stepped(1.1, 1.0, 150, 9_000, 0, 0, 0.07)
    for fact in (
        arrived(1.0),
        arrived(1.0, "a/2"),
        e.CallAdmitted(1.0, "a/1", 0, 0, 0),
        e.CallAdmitted(1.0, "a/2", 0, 0, 0),
        e.FirstToken(1.1, "a/1"),
        first,
        e.FirstToken(1.3, "a/2"),
        e.Stepped(1.3, 1.1, 50, 3_000, 1, 100, 0.15),
        stepped(1.3, 1.4),
    ):
        samples.add(fact)
    assert [step.host and step.host._replace(seconds=round(step.host.seconds, 6)) for step in samples.steps] == [
        HostShare(0.03, 2, 1),
        HostShare(0.05, 0, 2),
        None,  # nobody says what the workers took
    ]


@pytest.mark.parametrize("worker_s", [-0.1, 0.11])
def test_workers_that_took_longer_than_the_step_say_nothing_of_the_host(worker_s: float):
    samples = Samples()
    for fact in (arrived(1.0), e.Stepped(1.1, 1.0, 0, 0, 1, 100, worker_s)):
        samples.add(fact)
    assert [step.host for step in samples.steps] == [None]


def test_files_that_know_nothing_of_workers_are_read(tmp_path):
    """As they were written before steps said it."""
    path = tmp_path / "samples.jsonl"
    line = '{"fact":"Stepped","at_s":1.1,"from_s":1.0,"prefill_tokens":0,"attended_tokens":0,"decode_calls":1,'
    path.write_text(samples_text({}, []) + line + '"context_tokens":100}\n')
    _, facts = read_samples(path)
    assert list(facts) == [e.Stepped(1.1, 1.0, 0, 0, 1, 100, None)]


def test_a_step_that_computes_nothing_is_no_sample():
    assert seconds(arrived(1.0), e.Stepped(1.1, 1.0, 0, 0, 0, 0)) == []


def test_a_new_run_starts_the_time_anew():
    assert seconds(arrived(1.0), stepped(1.0, 9.0), STARTED, arrived(1.0), stepped(1.0, 1.1)) == [8.0, 0.1]


def test_copies_of_one_direction_go_one_after_another():
    samples = Samples()
    for fact in (
        e.OffloadStarted(1.0, "a/x", 10, 10),
        e.OffloadStarted(1.0, "a/y", 20, 20),
        e.UploadStarted(1.0, "a/z", 5),
        e.OffloadFinished(2.0, "a/x", 10, 10),
        e.UploadFinished(2.5, "a/z", 5),
        e.OffloadFinished(4.0, "a/y", 20, 20),
        e.LoadStarted(2.0, "a/1", 7, 0),
        e.LoadFinished(3.5, "a/1", 7),
    ):
        samples.add(fact)

    assert samples.copies == [
        CopySample(True, 10, 1.0),
        CopySample(False, 5, 1.5),
        CopySample(True, 20, 2.0),
        CopySample(False, 7, 1.0),
    ]


def test_what_took_less_than_a_picosecond_took_no_time():
    """Such times come from files that were tampered with: what is divided by them is more than a number can be."""
    samples = Samples()
    for seconds in (5e-324, 9e-13, 2e-12):
        samples.add(e.RunStarted(0.0, 16, 100, 100, 1))
        samples.add(e.Stepped(seconds, 0.0, 10, 55, 0, 0))
        samples.add(e.OffloadStarted(0.0, "a", 2**63 - 1, 1))
        samples.add(e.OffloadFinished(seconds, "a", 2**63 - 1, 1))
    assert [step.seconds for step in samples.steps] == [2e-12]
    assert [copy.seconds for copy in samples.copies] == [2e-12]


def test_copies_that_workers_timed_took_what_they_say():
    """The engine saw their ends later, when a step had ended."""
    samples = Samples()
    for fact in (
        e.OffloadStarted(1.0, "a/x", 10, 10),
        e.StoreStarted(1.0, "a/1", 4),
        e.Copied(2.0, True, 10, 0.25),
        e.OffloadFinished(2.0, "a/x", 10, 10),
        e.Copied(3.0, True, 4, 0.125),
        e.StoreFinished(3.0, "a/1", 4),
        STARTED,  # another run, whose workers tell nothing
        e.OffloadStarted(1.0, "a/x", 3, 3),
        e.OffloadFinished(2.0, "a/x", 3, 3),
    ):
        samples.add(fact)
    assert samples.copies == [CopySample(True, 10, 0.25), CopySample(True, 4, 0.125), CopySample(True, 3, 1.0)]


def test_a_copy_that_was_given_up_and_begun_again_is_measured_once_at_most():
    samples = Samples()
    for fact in (
        e.UploadStarted(1.0, "a/x", 10),
        e.UploadCancelled(1.5, "a/x", 10, 0.5),
        e.UploadStarted(1.6, "a/x", 4),
        e.UploadFinished(2.0, "a/x", 12),  # 8 of them had stayed on the GPU
        e.UploadFinished(2.5, "a/x", 12),
    ):
        samples.add(fact)

    (copy,) = samples.copies
    assert copy == CopySample(False, 4, copy.seconds)
    assert copy.seconds == pytest.approx(0.4)


def test_a_file_of_samples_reads_back_equal(tmp_path):
    facts: list[Any] = [STARTED, arrived(1.0), stepped(1.0, 1.1)]
    path = tmp_path / "samples.jsonl"
    path.write_text(samples_text({"model": "tiny", "gpu_blocks": 100}, facts))

    engine, read = read_samples(path)
    assert engine == {"model": "tiny", "gpu_blocks": 100}
    assert list(read) == facts


@pytest.mark.parametrize(
    "content", ["", "{}\n", '{"schema": "tokencake.samples/1"}\n', "[1]\n", "\xff\n", "[" * 100_000]
)
def test_another_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "other.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(TraceError, match=r'other.jsonl:1: expected {"schema": "tokencake.samples/1"') as refused:
        read_samples(path)
    assert "\n" not in str(refused.value)


def test_a_line_that_is_no_fact_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(samples_text({}, [STARTED]) + '{"fact":"Unheard"}\n')
    _, facts = read_samples(path)
    with pytest.raises(TraceError, match=r"samples.jsonl:3: fact: expected one of"):
        list(facts)

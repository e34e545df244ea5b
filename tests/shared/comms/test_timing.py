"""Communication time in a step: interval arithmetic, and the output of a run of several processes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from shared.comms.collective_log import Span
from shared.comms.shaped_network import Job, succeed
from shared.comms.timing import (
    Kernel,
    Totals,
    gpu_exposed,
    kernels_in_trace,
    length,
    length_outside,
    prometheus_text,
    union,
)
from shared.strategy import DDP
from tests.shared.comms import workers

ticks = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


@given(ticks, ticks)
def test_interval_lengths_equal_counted_ticks(one, other):
    def covered(intervals):
        return {tick for start, end in intervals for tick in range(start, end)}

    assert length(one) == len(covered(one))
    assert length_outside(one, other) == len(covered(one) - covered(other))
    assert covered(union(one)) == covered(one)


def test_communication_before_the_last_gradient_is_hidden():
    spans = [
        Span("all_reduce", "all", 1.0, 3.0, 100, False),
        Span("all_reduce", "all", 3.0, 6.0, 100, False),
        Span("all_reduce", "all", 7.0, 8.0, 8, True),
    ]
    totals = Totals()
    totals.add(spans, start=0.0, end=10.0, ready=4.0)
    assert (totals.nccl_time, totals.exposed, totals.bytes) == (6.0, 3.0, 208)
    assert totals.by_collective == {"all_reduce (all)": 6.0}


def test_on_a_gpu_communication_without_other_kernels_is_exposed():
    kernels = [
        Kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 0.0, 4.0),
        Kernel("ampere_sgemm_128x64_nn", 1.0, 3.0),
        Kernel("ncclDevKernel_AllGather_RING_LL", 3.5, 5.0),
    ]
    assert gpu_exposed(kernels) == (5.0, 3.0)


def test_metrics_have_the_names_that_users_know():
    seconds = {"nccl_time": 0.5, "nccl_time_worst": 0.75, "seconds of all_reduce (all)": 0.25}
    text = prometheus_text({**seconds, "rank_that_waits_least": 3.0})
    assert "trivium_rank_that_waits_least 3\n" in text
    assert 'trivium_nccl_time{process="median"} 0.5' in text and 'trivium_nccl_time{process="worst"} 0.75' in text
    assert 'trivium_collective_seconds{collective="all_reduce (all)",process="median"} 0.25' in text


def test_a_run_writes_its_communication_by_collective_and_group(hosts, tmp_path):
    job = Job(hosts, 2, workers.train_lines, [(tmp_path / "run", 10, DDP(route="hierarchical"))])
    succeed(job.results(60))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    found = [event for event in events if event["event"] == "communication"]
    assert [event["step"] for event in found] == [5, 10]
    for event in found:
        assert 0 < event["exposed"] <= event["nccl_time"] <= event["nccl_time_worst"]
        assert event["hidden"] == pytest.approx(event["nccl_time"] - event["exposed"], rel=0.5)
        assert 0 < event["exposed_share"] <= event["share"] <= event["share_worst"] < 1
        for name in ("reduce_scatter (inside)", "all_reduce (across)", "all_gather (inside)"):
            assert event[f"seconds of {name}"] > 0
        assert {event["rank_that_waits_most"], event["rank_that_waits_least"]} <= {0, 1, 2, 3}
    trace = json.loads((tmp_path / "run" / "communication.trace.json").read_text())["traceEvents"]
    assert {event["cat"] for event in trace} >= {"inside", "across"}
    assert "trivium_nccl_time{" in (tmp_path / "run" / "communication.prom").read_text()


def test_a_profiler_trace_yields_kernels_with_collective_and_group():
    """As written by Kineto (torch 2.14): times in microseconds; CPU events do not count."""
    collective = {"Collective name": "allreduce", "Process Group Name": "4", "Process Group Description": "all"}
    nameless = {
        "Collective name": "_allgather_base",
        "Process Group Name": "7",
        "Process Group Description": "undefined",
    }
    events = [
        {"cat": "cpu_op", "name": "record_param_comms", "ts": 0, "dur": 9e6, "args": collective},
        {"cat": "kernel", "name": "ncclDevKernel_AllReduce_Sum_f32_RING_LL", "ts": 1e6, "dur": 2e6, "args": collective},
        {"cat": "kernel", "name": "ampere_sgemm_128x64_nn", "ts": 2e6, "dur": 0.5e6, "args": {"stream": 7}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 4e6, "dur": 1e6, "args": {}},
        {"cat": "kernel", "name": "ncclDevKernel_AllGather_RING_LL", "ts": 4.5e6, "dur": 1e6, "args": nameless},
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    ]
    totals = Totals()
    totals.add_kernels(kernels_in_trace({"traceEvents": events}), seconds=10.0)
    assert (totals.steps, totals.seconds, totals.nccl_time, totals.exposed) == (1, 10.0, 3.0, 2.0)
    assert totals.by_collective == {"allreduce (all)": 2.0, "_allgather_base (7)": 1.0}


def test_a_trace_of_a_real_step_is_read(tmp_path):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(3).sum()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    document = json.loads((tmp_path / "trace.json").read_text())
    assert any(event.get("cat") == "cpu_op" for event in document["traceEvents"])
    assert kernels_in_trace(document) == []

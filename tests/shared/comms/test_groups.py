"""Joining a job, the order of its ranks, and the messages when a process is lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing.spawn import ProcessContext

from shared.comms.allreduce import mesh_ranks
from shared.comms.group import Group
from shared.comms.joining import members_in_order
from shared.comms.shaped_network import Job, succeed
from shared.comms.watch import Member
from shared.errors import InvalidInputError
from shared.observe.events import read_events
from tests.shared.comms import workers
from tests.shared.processes import run


@pytest.mark.parametrize("how", ["kills", "stops", "sleeps", "raises"])
def test_the_remaining_processes_name_the_lost_one(hosts, how):
    job = Job(hosts, 2, workers.lose, how, 2)
    # A slow process learns that the others have left it.
    informed = (0, 1, 2, 3) if how == "sleeps" else (0, 1, 3)
    messages = {rank: job.result(rank, 30) for rank in informed}
    job.end()
    expected = {
        "kills": "no longer responds",
        "stops": "no longer responds",
        "sleeps": "is alive but too slow",
        "raises": "failed at step 3: ValueError: no such sample",
    }
    for rank in informed:
        assert isinstance(messages[rank], str), messages[rank]
        assert messages[rank].startswith(f"rank 2 (on node1, process {job.processes[2].pid}) {expected[how]}")
        if how != "raises":
            assert "waits in all_reduce (all) since" in messages[rank]


@pytest.mark.parametrize("slow", [0, 1])
def test_each_process_raises_its_own_error_although_one_connects_late(hosts, slow):
    messages = succeed(Job(hosts, 1, workers.refuse_after_joining, slow).results(30))
    assert messages == ["this job cannot run"] * 2


def test_the_first_process_says_why_it_failed_before_its_store_ends(hosts):
    """Without ``torchrun``. The others are still computing when it fails."""
    job = Job(hosts, 2, workers.lose, "raises", 0)
    failure, *messages = job.results(30)
    assert (failure.kind, failure.message) == ("ValueError", "no such sample")
    expected = f"rank 0 (on node0, process {job.processes[0].pid}) failed at step 3: ValueError: no such sample"
    assert messages == [expected] * 3


def test_routes_sum_like_the_backend_and_ranks_of_a_host_are_adjacent(hosts):
    for result in succeed(Job(hosts, 2, workers.sums, [None], interleaved=True).results(60)):
        assert result["hosts"] == ["node0", "node0", "node1", "node1"]
        assert result["nodes"] == ((0, 1), (2, 3))
        assert len(result["found"]) == 2 * len(workers.DTYPES) * len(workers.SIZES)
        assert not any(result["found"].values())


@pytest.mark.parametrize(("processes", "shards"), [(3, (1, 3)), (6, (1, 2, 3, 6))])
def test_routes_sum_like_the_backend_in_every_possible_mesh(processes, shards):
    for result in run(workers.sums, shards, processes=processes):
        assert len(result["found"]) == (1 + len(shards)) * len(workers.DTYPES) * len(workers.SIZES)
        assert not any(result["found"].values())


def test_hosts_whose_names_do_not_resolve_find_the_interface_between_them(hosts):
    """gloo would listen on the loopback interface, as on a Debian host whose name resolves to 127.0.1.1."""
    assert succeed(Job(hosts, 2, workers.sum_without_interface).results(60)) == [(6.0, "eth0")] * 4


def test_hosts_whose_names_resolve_to_another_machine_find_the_interface_between_them(hosts):
    """As with an outdated entry of the DNS. gloo cannot listen on that address, and uses the loopback interface."""
    others = [host.address for host in reversed(hosts)]
    assert succeed(Job(hosts, 1, workers.sum_without_interface, others).results(60)) == [(1.0, "eth0")] * 2


def test_processes_that_cannot_connect_say_through_which_interface_and_what_to_set(hosts):
    for message in succeed(Job(hosts, 1, workers.join_through, ["lo", "lo"], 5).results(60)):
        assert message.startswith("the processes of the job cannot connect to each other from node")
        assert "the interface lo: " in message and "name the interface between the hosts in GLOO_SOCKET_I" in message


@pytest.mark.parametrize("interfaces", [["ib0", "eth0"], ["eth0", "ib0"]])
def test_all_processes_learn_at_once_that_one_cannot_connect(hosts, interfaces):
    """The first process holds the store, so it must not end before the other has read the cause."""
    messages = succeed(Job(hosts, 1, workers.join_through, interfaces, 240).results(30))
    odd = interfaces.index("ib0")
    expected = f"the processes of the job cannot connect to each other from node{odd} through the interface ib0: "
    assert messages[0] == messages[1] and messages[0].startswith(expected)


def test_machines_with_the_same_host_name_are_different_hosts():
    """Clones of a disk image: their processes neither share memory nor process ids."""
    launched = [Member("ubuntu", n % 2, 100 + n, n, "pid:[1]", machine) for n, machine in enumerate("aabb")]
    group = Group(0, 4, torch.device("cpu"), members_in_order(launched, None))
    assert [member.host for member in group.members] == ["ubuntu", "ubuntu", "ubuntu (2)", "ubuntu (2)"]
    assert group.nodes == ((0, 1), (2, 3)) and [member.launched for member in group.members] == [0, 1, 2, 3]


def test_processes_that_wait_for_each_other_in_different_collectives_are_named(hosts):
    job = Job(hosts, 2, workers.lose, "differs", 2)
    message = job.result(0, 60)
    job.end()
    assert isinstance(message, str), message
    assert "waits in a different collective" in message
    assert "in all_reduce (inside) since" in message and "in all_reduce (all) since" in message


UNLIKE = {
    "mesh": "strategy.shard is 3, but 4 processes do not divide into groups of that size; possible sizes are 1, 2, 4",
    "settings": "seed is 1",
    "batches": "the number of training samples is 44 there and 40 elsewhere",
    "dtypes": "float64",
    "copies": "give every host the same copy of the data",
}


@pytest.fixture(scope="module")
def refusals(hosts, tmp_path_factory):
    """The message of each process for each kind of difference of rank 2."""
    return succeed(Job(hosts, 2, workers.train_unlike, tmp_path_factory.mktemp("runs"), 2, tuple(UNLIKE)).results(90))


@pytest.mark.parametrize(("how", "words"), UNLIKE.items())
def test_differences_between_processes_are_refused_on_each_and_named(refusals, how, words):
    (message,) = {by_kind[how] for by_kind in refusals}
    assert words in message
    if how != "mesh":
        assert "rank 2 (on node1, process " in message or "process 2 was started" in message


def test_a_host_with_another_number_of_processes_is_named():
    members = tuple(Member(host, local, 1, 0) for host, local in (("node0", 0), ("node0", 1), ("node1", 0)))
    with pytest.raises(InvalidInputError, match="on every host, but node1 has 1 and node0 has 2"):
        mesh_ranks(Group(0, 3, torch.device("cpu"), members))


def test_a_process_that_never_joins_is_named():
    for rank, message in enumerate(run(workers.meet_without, 2, processes=3)):
        assert rank == 2 or message.startswith("of the 3 processes of the job, launcher rank 2 did not join")


def test_processes_may_join_groups_one_after_the_other():
    assert run(workers.join_again, 6) == [6, 6]


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_run_resumes_after_torchrun_has_restarted_it(tmp_path, how, monkeypatch):
    # A stopped process ignores SIGTERM, and torch waits 30 seconds before it sends SIGKILL.
    join = ProcessContext._join_procs_with_timeout
    monkeypatch.setattr(ProcessContext, "_join_procs_with_timeout", lambda self, timeout: join(self, min(timeout, 2)))
    # The entry point of torchrun; its processes come from the fork server.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="restarted",
        max_restarts=1,
        start_method="forkserver",
    )
    with ThreadPoolExecutor(1) as thread:
        steps = thread.submit(elastic_launch(config, workers.train_and_lose), tmp_path / "run", how).result(timeout=300)
    assert steps == {0: 10, 1: 10}
    begun = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "begin"]
    assert [event["step"] for event in begun] == [0, 5]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 10

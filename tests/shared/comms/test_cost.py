"""The cost model: its formulas at known points, and the relations between them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli.main import main
from shared.comms.calibration import fit_link
from shared.comms.cost import (
    LINKS,
    Cluster,
    Link,
    hierarchical_seconds,
    node_bytes,
    ring_all_reduce,
    route_seconds,
    tree_all_reduce,
)
from shared.comms.profiles import bert_base, resnet50
from shared.comms.shaped_network import Job, succeed
from shared.comms.step_model import (
    DEVICES,
    CommunicationOption,
    Workload,
    communication_options,
    predict,
    rank_options,
)
from shared.errors import InvalidInputError
from tests.shared.comms import workers

SLOW, FAST = Link(alpha_s=1e-4, bytes_s=12.5e6), Link(alpha_s=1e-6, bytes_s=1e9)
TWO_BY_FOUR = Cluster(nodes=2, per_node=4, intra=FAST, inter=SLOW, tree=False)
PLAIN = CommunicationOption(route="flat", compression="none", sharding="DDP")


def test_networks_have_their_published_sizes():
    # As counted by torchvision (4.09e9 multiply-adds) and Hugging Face.
    assert resnet50().parameters == 25_557_032 and resnet50().flops / 2 == pytest.approx(4.09e9, rel=0.01)
    assert bert_base().parameters == 109_482_240


def test_formulas_at_known_points():
    # Eight processes, 25 MB: 2 * 7 / 8 * 25 MB at 12.5 MB/s, and 14 messages.
    assert ring_all_reduce(25e6, 8, SLOW) == pytest.approx(14e-4 + 3.5)
    assert tree_all_reduce(25e6, 8, SLOW) == pytest.approx(6e-4 + 4.0)
    assert hierarchical_seconds(25e6, TWO_BY_FOUR, pipelined=True) == pytest.approx(2.0002)
    assert node_bytes("flat", 25e6, TWO_BY_FOUR) == 43.75e6
    assert node_bytes("flat", 25e6, replace(TWO_BY_FOUR, interleaved=True)) == 175e6
    assert node_bytes("hierarchical", 25e6, TWO_BY_FOUR, sent_fraction=0.5) == 12.5e6
    # One process on each node: the link inside a node does not matter, however slow it is.
    alone = Cluster(nodes=4, per_node=1, intra=SLOW, inter=FAST, tree=False)
    assert route_seconds("flat", 25e6, alone) == ring_all_reduce(25e6, 4, FAST)


def test_a_large_all_reduce_has_the_bus_bandwidth_that_nccl_reaches_in_a_ring():
    cluster = Cluster(nodes=1, per_node=8, intra=LINKS["nvlink4"], inter=LINKS["ib-ndr"], ports=8)
    size = 8e9
    bus_bandwidth = 2 * (cluster.world - 1) / cluster.world * size / route_seconds("flat", size, cluster) / 1e9
    # Eight H100s, in GB/s, with NCCL_ALGO=RING (NVIDIA/nccl-tests issue 212).
    assert bus_bandwidth == pytest.approx(370, rel=0.15)


@given(st.integers(1, 64), st.integers(1, 8), st.floats(1e3, 1e9))
def test_more_bytes_never_take_less_time_and_one_process_takes_none(nodes, per_node, size):
    cluster = Cluster(nodes=nodes, per_node=per_node, intra=LINKS["nvlink4"], inter=LINKS["ib-hdr"])
    for route in ("flat", "ring", "hierarchical"):
        seconds = route_seconds(route, size, cluster)
        assert seconds <= route_seconds(route, 2 * size, cluster)
        assert (seconds == 0) == (cluster.world == 1)
        assert node_bytes(route, size, cluster) == 0 or nodes > 1


@given(st.floats(1e-6, 1e-2), st.floats(1e6, 1e10))
def test_a_noise_free_sweep_is_fitted_exactly(alpha, rate):
    link = Link(alpha_s=alpha, bytes_s=rate)
    sizes = (4_000, 500_000, 4_000_000)
    found = fit_link(sizes, [link.seconds(size) for size in sizes])
    assert found.seconds(1e6) == pytest.approx(link.seconds(1e6), rel=1e-6)


def test_communication_that_ends_before_the_backward_pass_is_hidden():
    workload = Workload(profile=resnet50(), batch=64, device=DEVICES["v100"])
    quick = predict(workload, Cluster(nodes=4, per_node=8, intra=LINKS["nvlink4"], inter=LINKS["ib-ndr"]), PLAIN)
    slow_links = Cluster(nodes=4, per_node=8, intra=LINKS["nvlink4"], inter=LINKS["ethernet-1g"])
    slow = predict(workload, slow_links, PLAIN)
    assert quick.share < 0.1 < 0.8 < slow.share
    assert quick.communication_s > quick.exposed_s and slow.communication_s > slow.exposed_s
    halved = predict(workload, slow_links, replace(PLAIN, compression="bf16"))
    assert halved.communication_s == pytest.approx(slow.communication_s / 2, rel=0.01)
    waiting = predict(replace(workload, jitter=0.05), slow_links, PLAIN)
    assert waiting.compute_s > slow.compute_s
    crowded = predict(workload, replace(slow_links, busy=0.5), PLAIN)
    assert crowded.communication_s == pytest.approx(2 * slow.communication_s, rel=0.01)
    alone = predict(workload, Cluster(nodes=1, per_node=1, intra=FAST, inter=SLOW), PLAIN)
    assert alone.exposed_s == alone.communication_s == 0


def test_options_that_exceed_the_memory_come_last():
    workload = Workload(profile=bert_base(), batch=8, device=DEVICES["a100"])
    cluster = Cluster(nodes=2, per_node=8, intra=LINKS["nvlink3"], inter=LINKS["ib-hdr"])
    free, tight = rank_options(workload, cluster), rank_options(workload, cluster, memory_bytes=1.5e9)
    assert {option.way.sharding for option in free} == {"DDP", "FSDP", "HSDP"} and len(free) == 12
    assert free == sorted(free, key=lambda option: option.step_s)
    assert tight[0].way.sharding != "DDP" and tight[-1].memory_bytes > 1.5e9
    with pytest.raises(InvalidInputError, match=r"compression='powersgd', sharding='FSDP'.* is not possible"):
        predict(workload, cluster, CommunicationOption(route="ring", compression="powersgd", sharding="FSDP"))


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_plan_offers_what_a_training_on_the_cluster_accepts(nodes, per_node):
    """A training refuses to compress with a single copy of the model, or copies on one process each."""
    offered = list(communication_options(Cluster(nodes=nodes, per_node=per_node, intra=FAST, inter=SLOW)))
    if nodes * per_node == 1:
        assert offered == [PLAIN]
    assert not any(option.sharding == "FSDP" and option.compression != "none" for option in offered)
    levels = {option for option in offered if option.sharding == "HSDP" or option.route == "hierarchical"}
    assert bool(levels) == (nodes == per_node == 2)


def test_only_the_sum_across_copies_of_a_sharded_model_is_compressed():
    cluster = Cluster(nodes=2, per_node=4, intra=FAST, inter=Link(alpha_s=0.0, bytes_s=1e15))
    workload = Workload(profile=bert_base(), batch=8, device=DEVICES["a100"])
    plain, half = (
        predict(workload, cluster, CommunicationOption(route="hierarchical", compression=name, sharding="HSDP"))
        for name in ("none", "bf16")
    )
    # Here the network between nodes takes no time, so halving its bytes saves none.
    assert half.communication_s == pytest.approx(plain.communication_s, rel=1e-4)
    assert half.link_bytes == plain.link_bytes / 2


@pytest.mark.parametrize(("processes", "maximum"), [(2, 0.5642), (4, 1.0294), (8, 1.4236), (64, 2.3437)])
def test_the_slowest_of_several_processes_takes_as_long_as_order_statistics_say(processes, maximum):
    """The expected maximum of normal variables (Teichroew, 1956; Harter, 1961)."""
    cluster = Cluster(nodes=1, per_node=processes, intra=FAST, inter=SLOW)
    workload = Workload(profile=resnet50(), batch=8, device=DEVICES["a100"], compute_s=1.0, jitter=0.1)
    assert predict(workload, cluster, PLAIN).compute_s == pytest.approx(1 + 0.1 * maximum, rel=0.005)


def test_the_network_of_a_job_is_calibrated_and_used_for_a_plan(hosts, tmp_path, capsys):
    file = tmp_path / "network.json"
    assert succeed(Job(hosts, 2, workers.calibrate, str(file)).results(120)) == [0] * 4
    # 200 Mbit/s between the hosts plus the burst of their queue; less if other programs run.
    found = json.loads(file.read_text())
    assert 10e6 < found["inter"]["bytes_s"] < 28e6 < found["intra"]["bytes_s"]
    links = ["--inter", f"{file}:inter", "--intra", f"{file}:intra"]
    assert main(["plan", "--model", "resnet50", "--nodes", "2", "--gpus", "4", "--ports", "1", *links]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["share"] > 0.5
    for exit_code in succeed(Job(hosts, 1, workers.calibrate, str(file)).results(120)):
        assert exit_code == 2

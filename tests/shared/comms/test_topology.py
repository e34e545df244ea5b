"""The topology of a cluster, and an order of hosts whose rings stay inside switches."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shared.cli.main import main
from shared.comms.joining import members_in_order
from shared.comms.topology import Tree, hosts_in_order, ring_crossings, tree_from_latency
from shared.comms.topology_files import (
    expand_hosts,
    kubernetes_tree,
    latency_tree,
    nccl_tree,
    read_topology,
    slurm_tree,
)
from shared.comms.watch import Member
from shared.errors import InvalidInputError

SLURM = """
# Two racks below a spine.
SwitchName=rack0 Nodes=node[1-6] LinkSpeed=100
SwitchName=rack1 \\
  Nodes=node[7-12]
SwitchName=spine Switches=rack[0-1]
"""
NCCL = """<system version="1">
  <cpu numaid="0"><pci busid="0000:10:00.0" class="0x060400">
    <pci busid="0000:11:00.0" class="0x030200"><gpu dev="0" sm="80" rank="0"/></pci>
    <pci busid="0000:12:00.0" class="0x030200"><gpu dev="2" sm="80" rank="2"/></pci>
    <pci busid="0000:13:00.0" class="0x020700"><nic><net name="mlx5_0" dev="0"/></nic></pci></pci></cpu>
  <cpu numaid="1"><pci busid="0000:90:00.0" class="0x030200"><gpu dev="1" sm="80" rank="1"/></pci></cpu>
</system>"""


def test_slurm_describes_the_switches_and_the_order_keeps_rings_inside():
    tree = slurm_tree(SLURM)
    hosts = [f"node{number}" for number in range(1, 13)]
    order = hosts_in_order(hosts, tree)
    assert order == hosts
    assert ring_crossings(order, tree)[0].most == 1
    # node1 | 10, 11, 12 | 2 ... 6 | 7, 8, 9: the ring leaves each rack twice.
    assert ring_crossings(sorted(hosts), tree)[0].most == 2


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 3), st.randoms())
def test_a_ring_leaves_every_switch_once_for_any_names_and_input_order(switches, racks, hosts, chance):
    names = [f"n{number}" for number in range(switches * racks * hosts)]
    chance.shuffle(names)
    unused = iter(names)
    tree = Tree(
        "top",
        tuple(
            Tree(
                f"s{s}", tuple(Tree(f"s{s}r{r}", tuple(Tree(next(unused)) for _ in range(hosts))) for r in range(racks))
            )
            for s in range(switches)
        ),
    )
    given_hosts = names.copy()
    chance.shuffle(given_hosts)
    order = hosts_in_order(given_hosts, tree)
    assert sorted(order) == sorted(names)
    assert all(level.most == 1 for level in ring_crossings(order, tree))
    assert order == hosts_in_order(names, tree)


def test_without_switches_hosts_are_sorted_by_number():
    assert hosts_in_order(["node10", "node2", "node1"], None) == ["node1", "node2", "node10"]


def test_kubernetes_labels_from_coarse_to_fine():
    items = [
        {"metadata": {"name": f"gpu-{n}", "labels": {"topology.kubernetes.io/zone": "a", "rack": f"r{n % 2}"}}}
        for n in range(4)
    ]
    tree = kubernetes_tree({"items": items})
    assert tree.leaves() == ["gpu-0", "gpu-2", "gpu-1", "gpu-3"]
    with pytest.raises(InvalidInputError, match="no node has a label"):
        kubernetes_tree({"items": [{"metadata": {"name": "a", "labels": {}}}]})


def test_nccl_dump_shows_which_gpus_share_a_switch():
    assert nccl_tree(NCCL).leaves() == ["gpu0", "gpu2", "gpu1"]
    with pytest.raises(InvalidInputError, match="NCCL's topology has the root <system>"):
        nccl_tree("<graph/>")


def test_latencies_reveal_racks_and_noise_does_not_create_any():
    noise = random.Random(0)
    hosts = [f"h{number}" for number in range(9)]
    rack = {host: number % 3 for number, host in enumerate(hosts)}
    latency = {
        (a, b): (10.0 if rack[a] == rack[b] else 25.0) * noise.uniform(0.9, 1.1) for a in hosts for b in hosts if a < b
    }
    tree = tree_from_latency(latency)
    assert [sorted(child.leaves()) for child in tree.children] == [
        ["h0", "h3", "h6"],
        ["h1", "h4", "h7"],
        ["h2", "h5", "h8"],
    ]
    flat = tree_from_latency({pair: noise.uniform(9, 11) for pair in latency})
    assert sorted(flat.leaves()) == hosts and not any(child.children for child in flat.children)
    text = "host,a,b,c\na,,5,20\nb,5,,21\nc,20,21,\n"
    assert hosts_in_order(["c", "b", "a"], latency_tree(text)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SwitchName=s0 Switches=s1\nSwitchName=s1 Switches=s0", "there is no root"),
        ("SwitchName=s0", "neither Nodes nor Switches"),
        ("SwitchName=s0 Switches=s1", "refers to the switch s1, which has no SwitchName line"),
        ("SwitchName=s0 Nodes=n[1-x]", "not a range"),
        ("nothing", "has an unknown format"),
        ("{", "cannot be read"),
        ("<system", "cannot be read"),
    ],
)
def test_an_unreadable_topology_is_refused_with_the_file_name(tmp_path, text, words):
    file = tmp_path / "topology"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=words) as raised:
        read_topology(file)
    assert str(file) in str(raised.value)


def test_host_lists():
    assert expand_hosts("n[08-10,2],gpu1,r[1-2]-n[1-2]") == [
        *("n08", "n09", "n10", "n2", "gpu1", "r1-n1", "r1-n2", "r2-n1", "r2-n2")
    ]


def test_the_command_prints_tree_and_order(tmp_path, capsys):
    file = tmp_path / "topology.conf"
    file.write_text(SLURM)
    assert main(["topology", str(file), "--hosts", "node[1-12]"]) == 0
    output = capsys.readouterr().out
    assert "our order: node1 node2 node3" in output and "rack1: node7 node8" in output
    assert main(["topology", str(file), "--hosts", "node99"]) == 2


def test_the_gpus_of_a_host_are_ordered_by_their_switches(tmp_path, capsys):
    file = tmp_path / "nccl.xml"
    file.write_text(NCCL)
    assert main(["topology", str(file)]) == 0
    output = capsys.readouterr().out
    assert "launcher's order: gpu0 gpu1 gpu2" in output and "CUDA_VISIBLE_DEVICES=0,2,1" in output
    with pytest.raises(InvalidInputError, match=r"nccl\.xml describes the GPUs of one host"):
        members_in_order([Member("node0", 0, 1, 0)], file)


@pytest.mark.parametrize("source", ["topology.conf", "nodes.json", "latency.csv"])
def test_hosts_from_every_source_are_ordered_by_their_switches(tmp_path, capsys, source):
    """Racks of odd and even hosts: with node10 before node2 a ring leaves each five times; once is enough."""
    hosts = [f"node{number}" for number in range(1, 13)]
    file = tmp_path / source
    rack = {host: number % 2 for number, host in enumerate(hosts, 1)}
    if source == "topology.conf":
        switches = [f"SwitchName=rack{r} Nodes={','.join(h for h in hosts if rack[h] == r)}" for r in (0, 1)]
        file.write_text("\n".join([*switches, "SwitchName=spine Switches=rack[0-1]"]))
    elif source == "nodes.json":
        nodes = [{"metadata": {"name": h, "labels": {"rack": f"rack{rack[h]}", "zone": "a"}}} for h in hosts]
        file.write_text(json.dumps({"kind": "List", "items": nodes}))
    else:
        rows = [[h, *("" if h == o else "5" if rack[h] == rack[o] else "20" for o in hosts)] for h in hosts]
        file.write_text("\n".join(",".join(row) for row in [["host", *hosts], *rows]))
    assert main(["topology", str(file)]) == 0
    output = capsys.readouterr().out
    assert f"our order: {' '.join([*hosts[::2], *hosts[1::2]])}" in output
    tree = read_topology(file)
    assert ring_crossings(hosts_in_order(hosts, tree), tree)[0].most == 1
    assert ring_crossings(sorted(hosts), tree)[0].most > 3
    members = [Member(host, local, 1, 2 * n + local) for n, host in enumerate(sorted(hosts)) for local in (0, 1)]
    assert [m.host for m in members_in_order(members, file)][::2] == [*hosts[::2], *hosts[1::2]]


def test_the_plan_ranks_the_options_and_ends_with_one_line_of_json(capsys, tmp_path):
    words = ["plan", "--model", "resnet50", "--nodes", "256", "--gpus", "8", "--intra", "nvlink4", "--inter", "ib-hdr"]
    assert main(words) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["best"]["sharding"] == "DDP" and 0 <= last["share"] < 1
    assert main(["plan", "--scenario"]) == 0
    scenario = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scenario["ok"] and scenario["before"] == pytest.approx(0.28, abs=0.01)
    for wrong in (["--inter", "string"], ["--nodes", "0"], ["--batch", "0"], ["--model", str(tmp_path / "none")]):
        assert main(["plan", *wrong]) == 2
    for wrong in (["--compute-ms", "0"], ["--compute-ms", "-5"], ["--jitter", "-1"], ["--powersgd-rank", "0"]):
        assert main(["plan", *wrong]) == 2, wrong
    capsys.readouterr()
    assert main(["plan", "--device", "rtx4090"]) == 2
    assert "--compute-ms" in capsys.readouterr().err


def test_the_plan_of_a_weights_file_needs_the_measured_time_of_a_step(capsys, tmp_path):
    save_file({"weight": torch.zeros(1000, 1000)}, tmp_path / "weights.safetensors")
    words = ["plan", "--model", str(tmp_path), "--nodes", "4", "--gpus", "1", "--inter", "ethernet-10g"]
    assert main(words) == 2
    assert "--compute-ms" in capsys.readouterr().err
    assert main([*words, "--compute-ms", "10"]) == 0
    assert "1.0 million parameters" in capsys.readouterr().out


@pytest.mark.parametrize(("link", "ports"), [("ethernet-100g", "1 port of"), ("ib-ndr", "8 ports of")])
def test_nodes_have_an_infiniband_port_for_each_gpu_and_one_of_ethernet(capsys, link, ports):
    assert main(["plan", "--nodes", "2", "--gpus", "8", "--inter", link]) == 0
    assert f"{ports} {link}" in " ".join(capsys.readouterr().out.split())

"""``trivium topology``."""

from __future__ import annotations

from shared.app import Table
from shared.cli.arguments import Topology
from shared.cli.printing import print_line, print_table
from shared.comms.topology import hosts_in_order, natural_key, ring_crossings
from shared.comms.topology_files import expand_hosts, read_topology


def run(command: Topology) -> int:
    """Prints the switches, the launcher's and our order of hosts, and how often a ring in each leaves a switch."""
    tree = read_topology(command.file)
    hosts = expand_hosts(command.hosts) if command.hosts else tree.leaves()
    ours = hosts_in_order(hosts, tree)
    # torchrun ranks hosts by the text of their names, node10 before node2 (elastic/rendezvous/dynamic_rendezvous.py).
    launcher_order = sorted(hosts, key=natural_key) if tree.of_gpus else sorted(hosts)
    for line in tree.lines():
        print_line(line)
    print_line(f"launcher's order: {' '.join(launcher_order)}")
    print_line(f"our order: {' '.join(ours)}")
    if tree.of_gpus:
        print_line(f"CUDA_VISIBLE_DEVICES={','.join(name.removeprefix('gpu') for name in ours)}")
    rows = []
    for before, after in zip(ring_crossings(launcher_order, tree), ring_crossings(ours, tree), strict=True):
        counts = (before.most, after.most, before.total, after.total)
        rows.append((str(before.level), str(before.switches), *map(str, counts)))
    columns = ("level", "switches", "worst, launcher's", "worst, ours", "all, launcher's", "all, ours")
    notes = (
        "How often a ring through all hosts leaves a switch. Each time, the uplink carries 2 (P - 1) / P S bytes of an "
        "all-reduce of S bytes. "
        + (
            "Processes take GPUs by number: set the variable above when starting them."
            if tree.of_gpus
            else "torchrun orders hosts by the text of their names; use our order with --strategy.topology FILE."
        ),
    )
    print_table(Table(title="", columns=columns, rows=rows, notes=notes))
    return 0

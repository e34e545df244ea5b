"""Reads topologies of clusters: Slurm, Kubernetes, NCCL, measured latencies."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from shared.comms.topology import Tree, natural_key, tree_from_latency
from shared.errors import InvalidInputError

KUBERNETES_LABELS = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "cloud.provider.com/topology-block",
    "topology.k8s.aws/network-node-layer-1",
    "topology.k8s.aws/network-node-layer-2",
    "topology.k8s.aws/network-node-layer-3",
    "cloud.google.com/gce-topology-block",
    "cloud.google.com/gce-topology-subblock",
    "cloud.provider.com/topology-rack",
    "topology.kubernetes.io/rack",
    "rack",
)
"""Node labels for location, from coarse to fine: those of Kubernetes, of Kueue's documentation and of cloud providers.
"""


def read_topology(path: Path) -> Tree:
    """The tree in a file: Slurm's ``topology.conf``, ``kubectl get nodes -o json``, NCCL's XML, or a CSV of latencies.

    The format is detected from the content; only a CSV needs its suffix. Raises ``InvalidInputError`` if the file
    cannot be read or has another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the topology {path} cannot be read: {error}") from error
    try:
        if text.lstrip().startswith("<"):
            return nccl_tree(text)
        if text.lstrip().startswith("{"):
            return kubernetes_tree(json.loads(text))
        if re.search(r"^\s*SwitchName\s*=", text, re.IGNORECASE | re.MULTILINE):
            return slurm_tree(text)
        if path.suffix == ".csv":
            return latency_tree(text)
    except (ValueError, ElementTree.ParseError) as error:
        raise InvalidInputError(f"the topology {path} cannot be read: {error}") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error
    raise InvalidInputError(
        f"{path} has an unknown format; supported are Slurm's topology.conf (lines SwitchName=), the JSON of kubectl "
        "get nodes, NCCL's topology XML, and a CSV of latencies (.csv)"
    )


def slurm_tree(text: str) -> Tree:
    """The switches of Slurm's ``topology.conf`` (``SwitchName=``, ``Nodes=``, ``Switches=``; tree plugin).

    Source: slurm.schedmd.com/topology.conf.html. If there are several roots, a common root is added above them.
    """
    children_of: dict[str, list[str]] = {}
    hosts_of: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        fields = {key.lower(): value for key, value in re.findall(r"(\w+)\s*=\s*(\S+)", line.split("#", 1)[0])}
        if "switchname" not in fields:
            continue
        for name in expand_hosts(fields["switchname"]):
            children_of[name] = expand_hosts(fields.get("switches", ""))
            hosts_of[name] = expand_hosts(fields.get("nodes", ""))
            if not children_of[name] and not hosts_of[name]:
                raise InvalidInputError(f"the switch {name} has neither Nodes nor Switches")
    inner = {child for children in children_of.values() for child in children}
    if unknown := sorted(inner - children_of.keys()):
        raise InvalidInputError(f"another switch refers to the switch {unknown[0]}, which has no SwitchName line")

    def build(name: str, above: tuple[str, ...]) -> Tree:
        if name in above:
            raise InvalidInputError(f"the switch {name} is below itself")
        return Tree(name, (*(build(child, (*above, name)) for child in children_of[name]), *map(Tree, hosts_of[name])))

    roots = [name for name in children_of if name not in inner]
    if not roots:
        raise InvalidInputError("every switch is below another one: there is no root")
    return build(roots[0], ()) if len(roots) == 1 else Tree("all", tuple(build(root, ()) for root in roots))


def expand_hosts(text: str) -> list[str]:
    """The names in a Slurm host list: ``n[1-3,07],gpu1`` gives n1, n2, n3, n07, gpu1."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        expanded = [""]
        for fixed, ranges in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", part):
            numbers = _range_numbers(ranges) if ranges else [""]
            expanded = (
                [name + fixed + number for name in expanded for number in numbers] if fixed or ranges else expanded
            )
        names += expanded
    return names


def _range_numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for number_range in ranges.split(","):
        first, _, last = number_range.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise InvalidInputError(f"[{ranges}] is not a range of numbers, as in n[1-4,7]")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers


def kubernetes_tree(document: Mapping[str, Any]) -> Tree:
    """The tree of the nodes in the output of ``kubectl get nodes -o json``, by those labels for location that occur."""
    nodes = {}
    for item in document.get("items", [document] if document.get("kind") == "Node" else []):
        meta = item.get("metadata", {})
        nodes[str(meta.get("name"))] = {str(k): str(v) for k, v in (meta.get("labels") or {}).items()}
    if not nodes:
        raise InvalidInputError("it contains no nodes; use the output of kubectl get nodes -o json")
    used = [label for label in KUBERNETES_LABELS if any(label in node_labels for node_labels in nodes.values())]
    if not used:
        raise InvalidInputError(
            f"no node has a label for its rack or zone, such as {', '.join(KUBERNETES_LABELS[-3:])}"
        )
    return _by_labels("all", list(nodes), nodes, used)


def _by_labels(name: str, hosts: list[str], nodes: Mapping[str, Mapping[str, str]], labels: Sequence[str]) -> Tree:
    if not labels:
        return Tree(name, tuple(map(Tree, sorted(hosts, key=natural_key))))
    parts: dict[str, list[str]] = {}
    for host in hosts:
        parts.setdefault(nodes[host].get(labels[0], "(no label)"), []).append(host)
    if len(parts) == 1:
        return _by_labels(name, hosts, nodes, labels[1:])
    ordered = sorted(parts.items(), key=lambda item: natural_key(item[0]))
    return Tree(name, tuple(_by_labels(value, found, nodes, labels[1:]) for value, found in ordered))


def nccl_tree(text: str) -> Tree:
    """The GPUs of a host below their CPUs and PCI switches, from NCCL's dump (``NCCL_TOPO_DUMP_FILE``).

    GPUs are named by their number (``gpu0``); a PCI bridge with a single child is left out. The tree does not contain
    NVLink: NCCL uses it between connected GPUs regardless of their order.
    """
    root = ElementTree.fromstring(text)
    if root.tag != "system":
        raise InvalidInputError(f"the root element is <{root.tag}>, but NCCL's topology has the root <system>")
    tree = _subtree("system", root)
    if tree is None:
        raise InvalidInputError("it contains no <gpu> element")
    return tree if tree.children else Tree("system", (tree,))


def _subtree(name: str, element: ElementTree.Element) -> Tree | None:
    found: list[Tree] = []
    for child in element:
        if child.tag == "gpu":
            found.append(Tree(f"gpu{child.get('dev', '?')}"))
        elif child.tag == "cpu":
            found += filter(None, [_subtree(f"cpu {child.get('numaid', '?')}", child)])
        elif child.tag == "pci":
            found += filter(None, [_subtree(f"pci {child.get('busid', '?')}", child)])
    if not found:
        return None
    return found[0] if len(found) == 1 else Tree(name, tuple(found))


def latency_tree(text: str) -> Tree:
    """The tree of a CSV of latencies in microseconds, with one row and one column per host.

    The first row and the first column contain the host names; cells may be empty.
    """
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    hosts = [name.strip() for name in rows[0][1:]] if rows else []
    latency_us: dict[tuple[str, str], float] = {}
    for row in rows[1:]:
        if len(row) != len(hosts) + 1:
            raise InvalidInputError(f"the row of {row[0]} has {len(row) - 1} values for {len(hosts)} hosts")
        for host, value in zip(hosts, row[1:], strict=True):
            if host != row[0].strip() and value.strip():
                latency_us[row[0].strip(), host] = float(value)
    return tree_from_latency(latency_us)

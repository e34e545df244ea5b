"""Reads what clusters say of their switches: Slurm, Kubernetes, NCCL, measured latencies. Pure but for the file."""

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
"""Labels of nodes that name what they hang on, from far to near: Kubernetes' own, Kueue's documented ones, clouds'."""


def read_topology(path: Path) -> Tree:
    """The tree in a file, told by its content: ``topology.conf``, ``kubectl get nodes -o json``, XML, or a CSV."""
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
        f"{path} is none of: Slurm's topology.conf (lines SwitchName=), the JSON of kubectl get nodes, NCCL's topology "
        "XML, a CSV of latencies"
    )


def slurm_tree(text: str) -> Tree:
    """The switches of Slurm's ``topology.conf`` (``SwitchName=``, ``Nodes=``, ``Switches=``; tree plugin).

    Source: slurm.schedmd.com/topology.conf.html. Several roots get one above them.
    """
    below: dict[str, list[str]] = {}
    leaves: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        fields = {key.lower(): value for key, value in re.findall(r"(\w+)\s*=\s*(\S+)", line.split("#", 1)[0])}
        if "switchname" not in fields:
            continue
        for name in expand_hosts(fields["switchname"]):
            below[name] = expand_hosts(fields.get("switches", ""))
            leaves[name] = expand_hosts(fields.get("nodes", ""))
            if not below[name] and not leaves[name]:
                raise InvalidInputError(f"the switch {name} has neither Nodes nor Switches")
    held = {child for children in below.values() for child in children}
    if unknown := sorted(held - below.keys()):
        raise InvalidInputError(f"the switch {unknown[0]} is named by another one and has no line of its own")

    def build(name: str, above: tuple[str, ...]) -> Tree:
        if name in above:
            raise InvalidInputError(f"the switch {name} hangs below itself")
        return Tree(name, (*(build(child, (*above, name)) for child in below[name]), *map(Tree, leaves[name])))

    roots = [name for name in below if name not in held]
    if not roots:
        raise InvalidInputError("every switch hangs below another one: there is no top")
    return build(roots[0], ()) if len(roots) == 1 else Tree("all", tuple(build(root, ()) for root in roots))


def expand_hosts(text: str) -> list[str]:
    """The names in a Slurm host list: ``n[1-3,07],gpu1`` gives n1, n2, n3, n07, gpu1."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        found = [""]
        for fixed, ranges in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", part):
            numbers = _range_numbers(ranges) if ranges else [""]
            found = [name + fixed + number for name in found for number in numbers] if fixed or ranges else found
        names += found
    return names


def _range_numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for one in ranges.split(","):
        first, _, last = one.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise InvalidInputError(f"[{ranges}] is not a range of numbers, as in n[1-4,7]")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers


def kubernetes_tree(document: Mapping[str, Any], labels: Sequence[str] = KUBERNETES_LABELS) -> Tree:
    """The nodes of ``kubectl get nodes -o json`` below their labels, from far to near; by default the known ones."""
    nodes = {}
    for item in document.get("items", [document] if document.get("kind") == "Node" else []):
        meta = item.get("metadata", {})
        nodes[str(meta.get("name"))] = {str(k): str(v) for k, v in (meta.get("labels") or {}).items()}
    if not nodes:
        raise InvalidInputError("there are no nodes in it; it should be the output of kubectl get nodes -o json")
    used = [label for label in labels if any(label in found for found in nodes.values())]
    if not used:
        raise InvalidInputError(f"no node has a label that tells its rack or zone, such as {', '.join(labels[-3:])}")
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
    """The GPUs of a host below their processors and PCI switches, from NCCL's dump (``NCCL_TOPO_DUMP_FILE``).

    GPUs are named by their number (``gpu0``); a PCI bridge with one thing below it is left out. NVLink is not in the
    tree: where GPUs are connected by it, NCCL takes it whatever the order.
    """
    root = ElementTree.fromstring(text)
    if root.tag != "system":
        raise InvalidInputError(f"the XML's root is <{root.tag}>, and NCCL's topology begins with <system>")
    tree = _below("system", root)
    if tree is None:
        raise InvalidInputError("there is no <gpu> in it")
    return tree if tree.children else Tree("system", (tree,))


def _below(name: str, element: ElementTree.Element) -> Tree | None:
    found: list[Tree] = []
    for child in element:
        if child.tag == "gpu":
            found.append(Tree(f"gpu{child.get('dev', '?')}"))
        elif child.tag == "cpu":
            found += filter(None, [_below(f"cpu {child.get('numaid', '?')}", child)])
        elif child.tag == "pci":
            found += filter(None, [_below(f"pci {child.get('busid', '?')}", child)])
    if not found:
        return None
    return found[0] if len(found) == 1 else Tree(name, tuple(found))


def latency_tree(text: str) -> Tree:
    """The tree of a CSV of latencies in microseconds: a row and a column a host, the first of each with the names."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    hosts = [name.strip() for name in rows[0][1:]] if rows else []
    found: dict[tuple[str, str], float] = {}
    for row in rows[1:]:
        if len(row) != len(hosts) + 1:
            raise InvalidInputError(f"the row of {row[0]} has {len(row) - 1} values for {len(hosts)} hosts")
        for host, value in zip(hosts, row[1:], strict=True):
            if host != row[0].strip() and value.strip():
                found[row[0].strip(), host] = float(value)
    return tree_from_latency(found)

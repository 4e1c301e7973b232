"""Divisible load on a tree: every inner node with its children is a star, reduced bottom-up.

Without latencies the time of a star grows in proportion to its load, so it is one node to its parent
(Bharadwaj, Ghose, Mani and Robertazzi 1996, chapter 5: equivalent processors).
"""

from dataclasses import dataclass

from isthmus.planning.single_pass.star import Number, SinglePass, plan_single_pass


@dataclass(frozen=True)
class TreeNode:
    """A node, the link that leads to it, and the nodes below."""

    seconds: Number | None  # for the whole load; None where the node only forwards
    link_seconds: Number | None = None  # for the whole load, from its parent; None for the root
    children: tuple["TreeNode", ...] = ()


@dataclass(frozen=True)
class TreePass:
    """When the last node is done, and the nodes' shares, each parent before its children."""

    seconds: Number
    shares: tuple[Number, ...]


def plan_single_pass_tree(root: TreeNode, *, mode: str = "sequential") -> TreePass:
    """Return the TreePass of the load that `root` (a TreeNode) has, one message a node.

    A node computes its own part while it forwards. In mode "cut-through" it forwards what has come
    while the rest comes; else when it has all of its subtree's load. Modes, orders, Fractions and
    ValueErrors as in `plan_single_pass`; latencies do not reduce, so there are none.
    """
    nodes = _parents_first(root)
    for node in nodes[1:]:
        if node.link_seconds is None:
            raise ValueError("every node but the root needs link_seconds")
    star_of: dict[int, SinglePass] = {}
    equivalent: dict[int, Number] = {}
    for place in range(len(nodes) - 1, -1, -1):
        node, below = nodes[place], nodes.children[place]
        star_of[place] = plan_single_pass(
            node.seconds,
            [equivalent[child] for child in below],
            [nodes[child].link_seconds for child in below],
            mode=mode,
        )
        equivalent[place] = star_of[place].seconds
    load: dict[int, Number] = {0: 1}
    shares = []
    for place in range(len(nodes)):
        star = star_of[place]
        shares.append(load[place] * star.root_share)
        load.update(
            (child, load[place] * share)
            for child, share in zip(nodes.children[place], star.worker_shares)
        )
    return TreePass(equivalent[0], tuple(shares))


class _Nodes(list):
    """Nodes with parents first, and `children[place]`: the places of a node's children."""


def _parents_first(root):
    """Return the nodes depth first, without recursion: a chain of machines may be long."""
    nodes, waiting = _Nodes(), [(root, None)]
    nodes.children = []
    while waiting:
        node, parent = waiting.pop()
        if parent is not None:
            nodes.children[parent].append(len(nodes))
        waiting += [(child, len(nodes)) for child in reversed(node.children)]
        nodes.append(node)
        nodes.children.append([])
    return nodes

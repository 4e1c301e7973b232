"""What Slurm has given to a job: nodes, ranks, partitions and features, by heterogeneous group."""

import os
import re
import subprocess
from dataclasses import dataclass

from isthmus.errors import ClusterError, SchedulerError

TIERS = ("cloud", "edge")
SITE_FEATURE = "site-"
# What Slurm does not know; `isthmus calibrate` measures it.
ASSUMED_RATE = 1000.0
ASSUMED_LINK = {"latency_seconds": 0.01, "bytes_per_second": 12.5e6}


@dataclass(frozen=True)
class Node:
    """One node of an allocation; `group` is its heterogeneous group, None where there are none."""

    name: str
    ranks: int
    group: int | None
    partition: str
    features: tuple[str, ...] = ()


def read_allocation(environment=os.environ):
    """Return the nodes of the job that this process runs in, in the order that ranks are numbered."""

    def given(name):
        if not environment.get(name):
            raise SchedulerError(
                f"Slurm: {name} is not set, as it is in a job with --nodes and "
                "--ntasks; start it with `isthmus submit`, sbatch or salloc, and pass "
                "Slurm's variables on (--export=ALL)"
            )
        return environment[name]

    if "SLURM_JOB_NODELIST" not in environment:
        raise SchedulerError(
            "this is no Slurm job: SLURM_JOB_NODELIST is not set; start it with "
            "`isthmus submit`, sbatch or salloc"
        )
    suffixes = {None: ""}
    if "SLURM_HET_SIZE" in environment:
        size = _whole(environment["SLURM_HET_SIZE"], "SLURM_HET_SIZE")
        suffixes = {group: f"_HET_GROUP_{group}" for group in range(size)}
    nodes = []
    for group, suffix in suffixes.items():
        listed = given(f"SLURM_JOB_NODELIST{suffix}")
        counts = tasks_of_nodes(given(f"SLURM_TASKS_PER_NODE{suffix}"))
        partition = given(f"SLURM_JOB_PARTITION{suffix}")
        names = ask("scontrol", "show", "hostnames", listed).split()
        if len(names) != len(counts):
            raise SchedulerError(
                f"Slurm: SLURM_TASKS_PER_NODE{suffix} tells of {len(counts)} nodes, "
                f"SLURM_JOB_NODELIST{suffix} of {len(names)}; unset what was set by "
                "hand, or start the job again"
            )
        features = features_of_nodes(listed)
        nodes += [
            Node(name, ranks, group, partition, features.get(name, ()))
            for name, ranks in zip(names, counts)
        ]
    return nodes


def tasks_of_nodes(text):
    """Return the tasks of each node from Slurm's short form: "2(x3),1" is 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        count, several, times = part.partition("(x")
        counts += [_whole(count, "SLURM_TASKS_PER_NODE")] * _whole(
            times.removesuffix(")") if several else "1", "SLURM_TASKS_PER_NODE"
        )
    return counts


def _whole(text, variable):
    """Return the number that a variable of Slurm's holds; SchedulerError if it is none."""
    if not (text.isascii() and text.isdigit()):
        raise SchedulerError(
            f"Slurm: {variable} holds {text!r} where a number should be; unset what "
            "was set by hand, or start the job again"
        )
    return int(text)


def features_of_nodes(listed):
    """Return node -> its active features."""
    lines = ask("sinfo", "--Node", "--noheader", f"--nodes={listed}", "--format=%N %b").splitlines()
    return {
        name: tuple(part for part in re.split("[,&]", features) if part != "(null)")
        for name, _, features in (line.partition(" ") for line in lines)
    }


def cluster_table(nodes):
    """Return the table of a cluster file for an allocation; sites are numbered as their nodes are.

    A node's site is its feature `site-NAME`, else all nodes of its group and tier, named by their
    partition. Its tier is its feature `cloud` or `edge`, else what its partition's name says; a job
    at one site that says nothing is a cloud. Rates and links are assumed.
    """
    keys = [site_key(node) for node in nodes]
    alone = len(set(keys)) == 1
    names = site_names(keys)
    sites = {}
    first = 0
    for node, key in zip(nodes, keys):
        tier = tier_of(node) or ("cloud" if alone else None)
        if tier is None:
            raise ClusterError(
                f"Slurm: node {node.name} is neither cloud nor edge; give it the feature "
                f'"cloud" or "edge", or name its partition {node.partition!r} so'
            )
        site = sites.setdefault(
            names[key],
            {
                "name": names[key],
                "tier": tier,
                "ranks": 0,
                "samples_per_second": ASSUMED_RATE,
                "world_ranks": [],
            },
        )
        if site["tier"] != tier:
            raise ClusterError(
                f"Slurm: node {node.name} is {tier}, its site {names[key]!r} is "
                f"{site['tier']}; a site is of one tier: mend the nodes' features"
            )
        site["ranks"] += node.ranks
        site["world_ranks"] += range(first, first + node.ranks)
        first += node.ranks
    hub, *others = sorted(sites.values(), key=lambda site: TIERS.index(site["tier"]))
    links = [{"between": [hub["name"], site["name"]], **ASSUMED_LINK} for site in others]
    return {"site": list(sites.values())} | ({"link": links} if links else {})


def tier_of(node):
    """Return "cloud" or "edge" from a node's features, else from its partition's name, else None."""
    for words in (node.features, re.split("[^a-z]+", node.partition.lower())):
        found = [tier for tier in TIERS if tier in words]
        if len(found) == 1:
            return found[0]
    return None


def site_key(node):
    """Return what the nodes of one site share."""
    named = [word.removeprefix(SITE_FEATURE) for word in node.features if word.startswith(SITE_FEATURE)]
    return ("named", named[0]) if named else (node.group, node.partition, tier_of(node))


def site_names(keys):
    """Return key -> name: its feature, partition or tier, or all with the group's number."""
    names, taken = {}, {key[1] for key in keys if key[0] == "named"}
    unnamed = list(dict.fromkeys(key for key in keys if key[0] != "named"))
    for key in dict.fromkeys(keys):
        if key[0] == "named":
            names[key] = key[1]
            continue
        group, *words = key
        alone = (
            word
            for place, word in enumerate(words, 1)
            if word and [other[place] for other in unnamed].count(word) == 1
        )
        name = next(alone, "-".join(dict.fromkeys(word for word in (*words, str(group)) if word)))
        while name in taken:  # as a feature can say
            name += "+"
        names[key] = name
        taken.add(name)
    return names


def ask(*command, text="", environment=None):
    """Return what one of Slurm's commands prints, given `text`; SchedulerError if it fails."""
    try:
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, timeout=60, env=environment
        )
    except FileNotFoundError:
        raise SchedulerError(f"{command[0]} is not found; run this where Slurm's commands are") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(
            f"{command[0]} has not answered for 60 s; is the controller up? Ask: scontrol ping"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SchedulerError(f"{command[0]} refuses: {said}")
    return done.stdout

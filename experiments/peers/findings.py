"""What the lines of compare_peers.jsonl say: tables, and targets met or not, computed from the lines."""

import statistics

from study import head, row

NARROW = {"ranks_of_sites": [2, 2], "bytes_per_second": 12.5e6}  # where the targets are set
NBYTES = 16_000_000
SHORT_NBYTES, SHORT_LIMIT, SHORT_RATE = 1_000, 1.2, 125e6
"""Of a short vector: how many times as long as the fastest exact peer it may take, over links up to so
many bytes a second."""
WINS = {"isthmus dense": "isthmus dense", "isthmus auto": 'isthmus with algorithm = "auto", exact,'}


class Findings:
    """The lines of one file, by what they tell of; a launch that failed tells nothing but that."""

    def __init__(self, lines):
        self.lines = lines
        self.failed = [line for line in lines if "failed" in line]
        self.sums = [line for line in lines if line["task"] == "allreduce" and "failed" not in line]
        self.trainings = [line for line in lines if line["task"] == "train" and "failed" not in line]

    @property
    def clusters(self):
        return list(dict.fromkeys(line["cluster"] for line in self.lines))

    @property
    def sizes(self):
        return sorted({line["nbytes"] for line in self.sums})

    def programs(self, lines):
        return list(dict.fromkeys(line["program"] for line in lines))

    def seconds(self, cluster, program, nbytes):
        """Return the median seconds of a call over all rounds, or None."""
        seconds = [
            second
            for line in self.sums
            for second in line["seconds"]
            if (line["cluster"], line["program"], line["nbytes"]) == (cluster, program, nbytes)
        ]
        return statistics.median(seconds) if seconds else None

    def chosen(self, cluster, program, nbytes):
        """Return which algorithms "auto" has taken, in words; None where the program names one."""
        found = {
            line.get("algorithm")
            for line in self.sums
            if (line["cluster"], line["program"], line["nbytes"]) == (cluster, program, nbytes)
        }
        return " or ".join(sorted(found)) if program == "isthmus auto" and found else None

    def best(self, cluster, nbytes, wanted):
        """Return (seconds, name) of the fastest of the programs that `wanted` is true of, or None."""
        found = [
            (seconds, program)
            for program in self.programs(self.sums)
            if wanted(program)
            if (seconds := self.seconds(cluster, program, nbytes)) is not None
        ]
        return min(found, default=None)

    def wire_seconds(self, cluster, program, nbytes):
        """Return what the bytes of one direction take at the link's rate alone, by the formula."""
        for line in self.sums:
            if (line["cluster"], line["program"], line["nbytes"]) == (cluster, program, nbytes):
                return line.get("wire_nbytes", nbytes) / line["bytes_per_second"]
        return None

    def jobs(self, cluster, program):
        """Return the trainings of a program on a cluster, one a seed."""
        return [
            line for line in self.trainings if (line["cluster"], line["program"]) == (cluster, program)
        ]

    def seconds_to_accuracy(self, cluster, program):
        """Return the median over seeds; None unless every seed came that far."""
        jobs = self.jobs(cluster, program)
        if not jobs or not all(job["reached"] for job in jobs):
            return None
        return statistics.median(job["seconds"] for job in jobs)


def is_exact_peer(program):
    return program == "Gloo float32" or program.startswith("Open MPI")


def targets(findings):
    """Yield (what, measured, limit, met): what isthmus is meant to reach on a narrow link."""
    cluster = next(
        (
            line["cluster"]
            for line in findings.lines
            if all(line[key] == value for key, value in NARROW.items())
        ),
        None,
    )
    for name, limit in (("dense", 1.10), ("int8", 1.15), ("int4", 1.3), ("1 bit", 1.3)):
        seconds = findings.seconds(cluster, f"isthmus {name}", NBYTES)
        if seconds is not None:
            ratio = seconds / findings.wire_seconds(cluster, f"isthmus {name}", NBYTES)
            yield f"{name}: seconds over bytes / rate, 16 MB", ratio, f"<= {limit}", ratio <= limit
    dense = findings.seconds(cluster, "isthmus dense", NBYTES)
    best = findings.best(cluster, NBYTES, is_exact_peer)
    if dense and best:
        yield (
            f"dense: times faster than the best exact peer ({best[1]})",
            best[0] / dense,
            "> 1",
            best[0] > dense,
        )
    yield from short_targets(findings)
    int8, gloo = (findings.seconds(cluster, name, NBYTES) for name in ("isthmus int8", "Gloo float32"))
    if int8 and gloo:
        yield "int8: times faster than Gloo float32", gloo / int8, ">= 5", gloo >= 5 * int8
    ours = min(
        (
            (seconds, name)
            for name in findings.programs(findings.trainings)
            if name.startswith("isthmus")
            and name != "isthmus mpi"
            and (seconds := findings.seconds_to_accuracy(cluster, name))
        ),
        default=None,
    )
    for peer, factor in (("DDP float32", 5), ("DDP fp16 hook", 2.5), ("DDP PowerSGD rank 2", 1)):
        theirs = findings.seconds_to_accuracy(cluster, peer)
        if ours and theirs:
            yield (
                f"training ({ours[1]}): times fewer seconds than {peer}",
                theirs / ours[0],
                f">= {factor}",
                theirs >= factor * ours[0],
            )


def short_targets(findings):
    """Yield what is wanted of the shortest vectors, where links are not of the fastest."""
    for cluster in findings.clusters:
        rate = next(line["bytes_per_second"] for line in findings.lines if line["cluster"] == cluster)
        ours = findings.seconds(cluster, "isthmus auto", SHORT_NBYTES)
        best = findings.best(cluster, SHORT_NBYTES, is_exact_peer)
        if ours and best and rate <= SHORT_RATE:
            yield (
                f"auto: 1 kB, {cluster}, times the seconds of the best exact peer ({best[1]})",
                ours / best[0],
                f"<= {SHORT_LIMIT}",
                ours <= SHORT_LIMIT * best[0],
            )


def tables(findings):
    """Yield the lines of a Markdown text with everything that was found."""
    first = findings.lines[0]
    yield f"Made by `{first['command']}`, commit {first['commit']}, {first['processor']}, " + (
        "links emulated." if first["emulated"] else "without a narrow link: a trial."
    )
    yield from ["", "## Targets", ""]
    yield from ["| target | measured | wanted | met |", "| --- | --- | --- | --- |"]
    for what, measured, wanted, met in targets(findings):
        yield f"| {what} | {measured:.2f} | {wanted} | {'yes' if met else '**no**'} |"
    yield from ["", "## Who wins"]
    for ours in findings.programs(findings.sums):
        yield from winning(findings, ours) if ours in WINS else ()
    for cluster in findings.clusters:
        yield from ["", f"## {cluster}", "", "Milliseconds of an allreduce (median)", ""]
        yield from head("program", size_names(findings.sizes))
        for program in findings.programs(findings.sums):
            yield row(
                program,
                [milliseconds(findings.seconds(cluster, program, nbytes)) for nbytes in findings.sizes],
            )
        yield from training_table(findings, cluster)
    if findings.failed:
        yield from ["", "## Launches that failed", ""]
        yield from sorted(
            {
                f"- {line['cluster']}, {line['task']}, {line['program']}: {line['failed']}"
                for line in findings.failed
            }
        )


def winning(findings, ours):
    """Yield how a program of isthmus stands beside the fastest exact peer."""
    yield from [
        "",
        f"How many times faster {WINS[ours]} is than the fastest exact peer (Gloo float32, Open MPI); "
        "below 1 it loses.",
        "",
    ]
    yield from head("cluster", size_names(findings.sizes))
    for cluster in findings.clusters:
        yield row(
            cluster,
            [
                ratio(
                    findings.best(cluster, nbytes, is_exact_peer),
                    findings.seconds(cluster, ours, nbytes),
                )
                + (f" by {chosen}" if (chosen := findings.chosen(cluster, ours, nbytes)) else "")
                for nbytes in findings.sizes
            ],
        )


def training_table(findings, cluster):
    jobs_of = {
        program: jobs
        for program in findings.programs(findings.trainings)
        if (jobs := findings.jobs(cluster, program))
    }
    if not jobs_of:
        return
    yield from [
        "",
        "To the test accuracy (medians over seeds)",
        "",
        "| program | seeds that reached it | steps | seconds | ms a step | MB, busiest site |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for program, jobs in jobs_of.items():
        steps, seconds, sent = (
            statistics.median(values)
            for values in zip(*((job["steps"], job["seconds"], busiest_nbytes(job)) for job in jobs))
        )
        yield (
            f"| {program} | {sum(job['reached'] for job in jobs)} of {len(jobs)} | {steps:g} | "
            f"{seconds:.1f} | {1e3 * seconds / steps:.1f} | {sent / 1e6:.1f} |"
        )


def busiest_nbytes(job):
    """Return the bytes that the site that sends most has sent into its links."""
    return max(job["sent_nbytes_of_hosts"], default=0)


def size_names(sizes):
    return [f"{nbytes / 1e6:g} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:g} kB" for nbytes in sizes]


def milliseconds(seconds):
    return "" if seconds is None else f"{1e3 * seconds:.4g}"


def ratio(best, seconds):
    return "" if best is None or seconds is None else f"{best[0] / seconds:.2f} ({best[1]})"

"""The check as a whole: every rank looks at its own surroundings, then all at what they share."""

import time
from pathlib import Path

from isthmus.checks import gpu, hdf5, machine, mpi, ranks, slurm
from isthmus.checks.findings import Finding, exit_code, failed, grouped, worst_status
from isthmus.checks.job import Checked
from isthmus.errors import ranks_in_words
from isthmus.terminal import styled

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


def check(make_world, settings_path=None, cluster_path=None):
    """Return what is fit for a run and what is not, as a table for JSON; the same on every rank.

    make_world: gives the communicator; called once the launcher has been asked for its version.
    cluster_path: a cluster file to take instead of the run's.
    Collective over it. The table's exit code is that of the first finding that fails.
    """
    start = time.perf_counter()
    path, told = mpi.launcher_on_path()
    comm, findings = mpi.start_mpi(make_world)
    job = Checked(comm)
    settings = cluster = None
    of_run = []
    if settings_path is not None and comm is not None:
        from isthmus.checks import run  # needs MPI

        settings, of_run = run.settings_of(job, settings_path, cluster_path)
    if settings is not None:
        cluster, more = run.cluster_of(job, settings)
        of_run += more + _data_and_plan(job, settings, cluster)
    findings += [
        *_of_mpi(job, path, told),
        *_of_ranks(job, settings, cluster),
        *_of_machine(job, settings),
        *of_run,
    ]
    groups = grouped(
        [
            [Finding(**finding) for finding in theirs]
            for theirs in job.from_all([finding.to_json() for finding in findings])
        ],
        job.hosts,
    )
    # Ranks with a world of their own wait for nobody: their code would end the one that tells it.
    code = exit_code(groups) if job.speaks or job.size > 1 else 0
    return {
        "status": worst_status(groups),
        "exit_code": code,
        "ranks": job.size,
        "hosts": list(job.ranks_of_host()),
        "seconds": time.perf_counter() - start,
        "findings": groups,
    }


def check_words(made):
    """Return the lines to print: a finding each, its ranks where others say another thing, the cure."""
    lines = []
    for group in made["findings"]:
        found = f"  {group['subject']:<16} {group['found']}"
        if len(group["ranks"]) < made["ranks"]:
            found += f" ({ranks_in_words(group['ranks'])}: {', '.join(group['hosts'])})"
        lines.append(styled((group["status"], COLOURS[group["status"]]), (found, "")))
        if group["cure"]:
            lines.append(f"      {'':<16} cure: {group['cure']}")
    count = {status: sum(group["status"] == status for group in made["findings"]) for status in COLOURS}
    lines.append(
        ", ".join(f"{number} {status}" for status, number in count.items())
        + f"; ranks: {made['ranks']}; {made['seconds']:.1f} s"
    )
    return lines


def _of_mpi(job, path, told):
    """Return the findings on MPI; without a library there are none."""
    if job.comm is None:
        return []
    found = [*mpi.library(), mpi.launcher(path, told, job)]
    if mpi.is_open_mpi():
        found += [mpi.started_as_root(path), mpi.transports(job.hosts)]
    return [finding for finding in found if finding]


def _of_ranks(job, settings, cluster):
    """Return what the ranks find together. Collective."""
    facts = job.from_all(ranks.cores_here())
    alone_for_all = cluster and not job.started and not any(site.hosts for site in cluster.sites)
    found = [
        *ranks.cores_for_ranks(
            facts,
            job.ranks_of_host(),
            threads=settings.run.threads if settings else 1,
            planned=cluster.size if alone_for_all else 1,
            started=job.started,
        )
    ]
    if job.size > 1:
        found.append(ranks.clocks(job.comm))
    asked = job.from_root(lambda: slurm.slurm(job).to_json())
    return [*found, Finding(**asked)]


def _of_machine(job, settings):
    """Return what this rank finds on its own."""
    subjects = [
        (
            "shared memory",
            lambda: [machine.shared_memory(ranks=len(job.ranks_of_host()[job.hosts[job.rank]]))],
        ),
        ("temporary folder", lambda: [machine.temporary_folder()]),
        ("CPU", lambda: [machine.cpu()]),
        ("Numba", machine.numba_kernels),
        ("HDF5 filters", lambda: [hdf5.filters()]),
        ("GPU", gpu.gpu),
    ]
    if job.rank == 0:
        folder = settings.run.folder if settings else Path("runs").resolve()
        subjects.append(("output folder", lambda: [machine.output_folder(folder)]))
    return [finding for subject, look in subjects for finding in _looked(subject, look)]


def _looked(subject, look):
    """Return the findings of `look()`; what nobody foresaw is a finding too, and hangs no rank."""
    try:
        return list(look())
    except Exception as problem:
        return [
            failed(
                subject,
                f"cannot be checked: {type(problem).__name__}: {problem}",
                "run `isthmus --debug check` and report this",
            )
        ]


def _data_and_plan(job, settings, cluster):
    """Return the findings on the run's data, and on its plan where both it and the cluster are right."""
    from isthmus.checks import run

    model, found = run.model(job, settings)
    if model is None:
        return found
    for name, folder in (("data train", settings.data.train), ("data test", settings.data.test)):
        found += run.data(job, name, folder, model, settings.data.scale, settings.security.keys)
    free = job.from_all(machine.memory_nbytes())
    seen = job.from_all(found[0].status == "PASS")
    broken = job.from_all(any(finding.status == "FAIL" for finding in found))
    if cluster is not None and not any(broken):
        made = job.from_root(lambda: run.plan(job, settings, cluster, free).to_json(), seen.index(True))
        found.append(Finding(**made))
    return found

"""Write the sbatch script of a run, and submit it."""

import os
import re
import shlex
import sys
from pathlib import Path

from isthmus.cluster.slurm import ask
from isthmus.errors import SettingsError
from isthmus.files import check_folder, write_text
from isthmus.folders.record import let_in
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.slurm.settings import SlurmSiteSettings
from isthmus.json_text import dumps

BODY = Path(__file__).with_name("slurm_job.sh")


def submit_run(run, cluster_path=None, part=None):
    """Submit a run from the folder that this process is in; return its job, folder and log.

    part: the SiteJob that is submitted, of a run each of whose sites is a job of its own; the folder is
    None where it is with the site that this one joins. The job finds the programs that this process
    would: sbatch passes the environment on.
    """
    settings = read_settings(run, cluster_path)
    script = job_script(settings, run, cluster_path, part)
    parent = settings.run.folder
    check_folder(parent, "set run.folder to a folder that you may write in")
    log = str(parent / "%x-%j.log")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    told = ask(
        "sbatch",
        "--parsable",
        f"--output={log}",
        "--export=ALL",
        text=script,
        environment={**os.environ, "PATH": path},
    )
    job = told.strip().partition(";")[0]
    name = job_name(run, part)
    log = str(parent / f"{name}-{job}.log")
    if part is not None and not part.begins(settings.read_cluster()):
        return {"job": job, "folder": None, "log": log}
    folder = parent / f"{name}-{job}"
    write_text(folder / "job.sbatch", script)
    let_in(folder, settings.run.mode)
    write_text(folder / "slurm.json", dumps({"job": job}) + "\n")
    return {"job": job, "folder": str(folder), "log": log}


def script_of_run(run, cluster_path=None, part=None):
    """Return the sbatch script of a run; paths in it are relative to the current folder."""
    return job_script(read_settings(run, cluster_path), run, cluster_path, part)


def read_settings(run, cluster_path):
    """Return the run's settings, with another cluster file if one is given."""
    settings = RunSettings.from_toml(run)
    return settings.with_cluster(cluster_path) if cluster_path else settings


def job_script(settings, run, cluster_path, part=None):
    """Return the script: one component of the job a site, then what is alike for all runs."""
    options = ["--cluster", os.path.relpath(cluster_path)] if cluster_path else []
    options += part.options if part is not None else []
    joins = part is not None and part.listen is None
    values = {
        "run_file": shlex.quote(os.path.relpath(run)),
        "threads": str(settings.run.threads),
        "options": f"({shlex.join(options)})",
        "named": "()" if joins else '(--name "$SLURM_JOB_NAME-$SLURM_JOB_ID")',
        "runs": shlex.quote(os.path.relpath(settings.run.folder)),
    }
    return "\n".join(
        [
            "#!/bin/bash",
            *header(settings, job_name(run, part), run, part),
            "",
            *(f"{name}={value}" for name, value in values.items()),
            "",
            BODY.read_text(encoding="utf-8"),
        ]
    )


def job_name(run, part=None):
    """Return the name of a run's settings file, in letters that Slurm and a folder's name take."""
    name = Path(run).stem if part is None else f"{Path(run).stem}-{part.site}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "isthmus"


def header(settings, name, run, part=None):
    """Return the `#SBATCH` lines: of the job, and of each of its sites in the cluster file's order."""
    slurm, cluster = settings.slurm, settings.read_cluster()
    unknown = slurm.site.keys() - set(cluster.names)
    if unknown:
        raise SettingsError(
            f"{run}: slurm.site.{min(unknown)}: no site is called {min(unknown)!r}; "
            f"known sites: {', '.join(cluster.names)}"
        )
    job = [
        f"--job-name={name}",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{slurm.warning_seconds}",
        f"--time={slurm.time}",
    ]
    job += [f"--{key}={value}" for key in ("account", "qos") if (value := getattr(slurm, key))]
    lines = []
    if part is not None:
        part.check_name(cluster)
    its = [site for site in cluster.sites if part is None or site.name == part.site]
    for index, site in enumerate(its):
        wanted = slurm.site.get(site.name, SlurmSiteSettings())
        if wanted.nodes > site.ranks:
            raise SettingsError(
                f"{run}: slurm.site.{site.name}.nodes: {wanted.nodes} nodes for "
                f"{site.ranks} ranks; ask for fewer nodes"
            )
        lines += ["hetjob"] if index else job
        lines += [
            f"--{key}={value}"
            for key, value in (
                ("partition", wanted.partition),
                ("constraint", wanted.constraint),
                ("nodes", wanted.nodes),
                ("ntasks", site.ranks),
                ("cpus-per-task", settings.run.threads),
                ("mem", wanted.memory),
                ("time", slurm.time if index else None),
            )
            if value is not None
        ]
    return [f"#SBATCH {line}" for line in lines]

"""Runs whose sites are jobs of their own: same bits as one job, and an end in words when one goes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from clusters import cluster_of
from patience import SECONDS
from test_rebalancing import lab
from test_sealed import Alone, sealed_lab

from isthmus.cli.sites import site_job
from isthmus.cluster.cluster import Cluster
from isthmus.errors import ClusterError, SecurityError, SettingsError
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.jobs.recovery_settings import RecoverySettings
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.sites import SiteJob, digest_of, may_begin_alone
from isthmus.jobs.slurm.submit import script_of_run
from isthmus.links.frames import HEADER_NBYTES
from isthmus.links.sealed import TAG_NBYTES
from isthmus.recovery.relay import reserved

pytest.importorskip("crc32c")
YIELDING = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""Each job believes that it has the machine for itself."""
STILL = {"cluster": {"compute": "real"}, "plan": {"replan": False}}


PLACES = []


def free_port():
    """Return a port at which one of ours may listen; nobody else is given it meanwhile."""
    PLACES.append(reserved())
    return PLACES[-1].getsockname()[1]


def start(ranks, *arguments):
    """Start `isthmus train` in so many ranks: under an mpirun of its own, or as it is."""
    isthmus = ["-m", "isthmus", "train", *map(str, arguments)]
    command = [sys.executable, *isthmus]
    if ranks > 1:
        command = [part for part in rank_command(ranks, *isthmus) if part != "mpi4py"]
        command.remove("-m")
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=rank_environment(**YIELDING),
    )


def end(job, seconds=SECONDS):
    """Return the code, and what was said on standard output and on standard error."""
    try:
        out, err = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.kill()
        pytest.fail(f"no end: {job.communicate()}")
    assert "Traceback" not in err
    return job.returncode, out, err


def start_sites(path, *ranks, more=()):
    """Start each site as a job, the last first; the first listens. more: for that alone."""
    where = f"127.0.0.1:{free_port()}"
    jobs = [
        start(count, path, "--site", f"site{number}", "--join", where)
        for number, count in reversed([*enumerate(ranks)][1:])
    ]
    return [start(ranks[0], path, "--site", "site0", "--listen", where, *more), *reversed(jobs)]


def summary_of(out):
    """Return the summary of the run whose report standard output names."""
    return json.loads(Path(re.search(r"report: (.*)", out)[1]).with_name("summary.json").read_text())


def test_one_site_of_a_run_is_submitted_as_a_plain_job(repository, monkeypatch):
    monkeypatch.chdir(repository)
    scripts = {}
    where = ("cloud.org", 7000)
    for part in (SiteJob("cloud", where), SiteJob("edge", None, (where,))):
        site = part.site
        scripts[site] = script = script_of_run(Path("slurm/two_sites.toml"), part=part)
        assert f"\n#SBATCH --job-name=two_sites-{site}\n" in script
        assert f"\n#SBATCH --partition={site}\n" in script
        assert "hetjob" not in script
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "\noptions=(--site cloud --listen cloud.org:7000)\nnamed=(--name " in scripts["cloud"]
    assert "\noptions=(--site edge --join cloud.org:7000)\nnamed=()\n" in scripts["edge"]
    with pytest.raises(ClusterError, match="has no site 'egde'; --site is one of cloud, edge"):
        script_of_run(Path("slurm/two_sites.toml"), part=SiteJob("egde", None, (("h", 1),)))


@pytest.mark.parametrize(
    ("ranks", "sites", "limits", "may"),
    [
        ((2, 1, 1), "0", {}, True),  # half, and the first of the file
        ((2, 1, 1), "0", {"least_sites": 2}, False),
        ((2, 1, 1), "01", {"least_sites": 2}, True),
        ((2, 1, 1), "01", {"least_ranks": 4}, False),
        ((1, 1, 1), "0", {}, False),
        ((1, 1, 1), "02", {}, True),
        ((1, 2, 2), "12", {}, False),  # the majority, with no link of its own
        ((1, 2, 2), "02", {}, True),
    ],
)
def test_the_majority_may_begin_without_the_others(ranks, sites, limits, may):
    recovery = RecoverySettings(survive=True, **limits)
    there = [f"site{number}" for number in sites]
    assert may_begin_alone(there, Cluster(cluster_of(*ranks)), recovery) == may


def test_options_that_do_not_fit_are_refused(tmp_path):
    assert site_job(None, None, None, "runs/x") is None
    words = ["--site", "edge", "--listen", "h:1", "--join", "[::1]:70", "--join", "h:70"]
    assert site_job("edge", "h:1", ["[::1]:70", "h:70"], None).options == words
    for wrong, why in (
        (("edge", None, None, None), "--listen HOST:PORT on one site"),
        ((None, "h:1", None, None), "--listen HOST:PORT on one site"),
        (("edge", "h:1", ["h:2", "h:1"], None), "h:1 is where this site listens; --join names other"),
        (("edge", None, ["h:1", "h:2", "h:1"], None), "h:1 is given twice; leave one out"),
        (("edge", None, ["7000"], None), "'7000' is no HOST:PORT"),
        (("edge", None, ["h:1"], "runs/x"), "the site that listens has the run's folder"),
    ):
        with pytest.raises(typer.BadParameter, match=why):
            site_job(*wrong)
    path = lab(Alone(), tmp_path, (1, 1), **STILL)
    settings = RunSettings.from_toml(path)
    cluster = settings.read_cluster()
    part = SiteJob("site0", ("0.0.0.0", 1))
    with pytest.raises(SecurityError, match=r"--listen 0.0.0.0:1: .* set security.token"):
        part._admission(settings)
    with pytest.raises(ClusterError, match="'site0' has 1 ranks, this job has 2; start it with mpirun"):
        part._check(settings, cluster, 2)
    part = SiteJob("site1", ("127.0.0.1", 1), (("127.0.0.1", 2),))
    with pytest.raises(ClusterError, match="'site1' may be the next hub, and has no link .* 'site2'"):
        part._check(settings, Cluster(cluster_of(1, 1, 1)), 1)
    part = SiteJob("site0", ("127.0.0.1", 2))
    mpi = settings.allreduce.model_copy(update={"algorithm": "mpi"})
    with pytest.raises(SettingsError, match='"mpi" reaches no further than one mpirun'):
        part._check(settings.model_copy(update={"allreduce": mpi}), cluster, 1)
    elsewhere = RunSettings.from_json(settings.to_json(), path).with_paths_from(tmp_path / "there")
    assert digest_of(elsewhere, cluster, False) == digest_of(settings, cluster, False)
    assert digest_of(settings, cluster, True) != digest_of(settings, cluster, False)
    other = settings.training.model_copy(update={"seed": 4})
    changed = settings.model_copy(update={"training": other})
    assert digest_of(changed, cluster, False) != digest_of(settings, cluster, False)
    path.write_text(path.read_text() + '\n[security]\ntoken = "runs/token"\n')
    with pytest.raises(SecurityError, match="security.token is in .*runs, which others are given"):
        RunSettings.from_toml(path)


@pytest.mark.slow
def test_two_sites_as_jobs_of_their_own_end_with_the_bits_and_bytes_of_one_job(tmp_path):
    """Those who know the token, in clear, and those who have keys, sealed."""
    path = sealed_lab(tmp_path, (2, 2), training={"epochs": 2}, **STILL)
    (tmp_path / "token").write_text("some secret of the sites")
    (tmp_path / "token").chmod(0o600)
    clear = tmp_path / "clear.toml"
    clear.write_text(path.read_text().replace('"sealed"', '"clear"') + 'token = "token"\n')
    code, out, said = end(start(4, clear))
    assert code == 0, said
    alone = summary_of(out)
    for settings, added in ((clear, HEADER_NBYTES), (path, HEADER_NBYTES + TAG_NBYTES)):
        (code, out, said), (other, short, words) = map(end, start_sites(settings, 2, 2))
        assert (code, other) == (0, 0), said + words
        apart = summary_of(out)
        assert apart["parameter_hash"] == alone["parameter_hash"]
        assert short.splitlines() == out.splitlines()[:1]  # the folder is elsewhere
        assert "site site1: joined from 127.0.0.1" in said
        assert "joined site site0 at 127.0.0.1" in words
        for far, near in zip(apart["links"], alone["links"], strict=True):
            assert far["sent_nbytes"] == far["predicted_nbytes"]
            assert far["sent_nbytes"] == near["sent_nbytes"] + added * apart["steps"]  # a wire a step


def said_when(job, words, seconds=SECONDS):
    """Return what `job` has said on standard error once `words` are among it."""
    said, until = "", time.monotonic() + seconds
    while words not in said:
        assert time.monotonic() < until, said
        line = job.stderr.readline()
        assert line, said
        said += line
    return said


@pytest.mark.slow
@pytest.mark.alone
def test_a_site_that_freezes_or_is_interrupted_ends_the_others_in_words_and_all_go_on(tmp_path):
    """Three sites of a rank each, two of which reach one another through the one that listens."""
    path = lab(
        Alone(),
        tmp_path,
        (1, 1, 1),
        plan={"replan": False},
        allreduce={"algorithm": "ring", "compressor": "none"},
        run={"checkpoint_every": 8, "report_every": 4},
    )
    path.write_text(path.read_text() + "\n[recovery]\ndeadline_seconds = 10.0\n")
    jobs = start_sites(path, 1, 1, 1)
    folder = said_when(jobs[0], "step 8: checkpoint").partition("run folder: ")[2].split()[0]
    jobs[2].send_signal(signal.SIGSTOP)
    for job in jobs[:2]:
        code, _, said = end(job)
        assert code == 20, said
        lines = [line for line in said.splitlines() if line.startswith("isthmus: ")]
        assert len(lines) == 1, said
        assert "site 'site2' has gone: no sign of life for" in lines[0]
        assert f"isthmus train RUN.toml --resume {folder}" in said
    jobs[2].kill()
    jobs[2].communicate()

    jobs = start_sites(path, 1, 1, 1, more=("--resume", folder))
    said_when(jobs[0], "checkpoint written")
    jobs[1].send_signal(signal.SIGINT)
    code, _, said = end(jobs[1])
    assert code == 130, said
    assert f"isthmus train RUN.toml --resume {folder}" in said
    for job in (jobs[0], jobs[2]):
        code, _, said = end(job)
        assert code == 20, said
        assert said.count("isthmus: ") == 1, said
        assert "site 'site1' has gone: it closed the connection" in said

    jobs = start_sites(path, 1, 1, 1, more=("--resume", folder))
    ends = [end(job) for job in jobs]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    code, out, said = end(start(3, path))
    assert code == 0, said
    assert summary_of(ends[0][1])["parameter_hash"] == summary_of(out)["parameter_hash"]


@pytest.mark.slow
def test_the_deadline_of_the_hub_counts_at_all_sites(tmp_path):
    path = lab(Alone(), tmp_path, (1, 1), plan={"replan": False}, run={"checkpoint_every": 8})
    own, text, where = path.with_name("own.toml"), path.read_text(), f"127.0.0.1:{free_port()}"
    path.write_text(f"{text}\n[recovery]\ndeadline_seconds = 4.0\n")
    own.write_text(f"{text}\n[recovery]\ndeadline_seconds = 300.0\n")
    edge = start(1, own, "--site", "site1", "--join", where)
    hub = start(1, path, "--site", "site0", "--listen", where)
    said_when(hub, "step 8: checkpoint")
    hub.send_signal(signal.SIGSTOP)
    code, _, said = end(edge, 60)
    hub.kill()
    hub.communicate()
    assert code == 20, said
    assert "site 'site0' has gone: no sign of life for" in said

"""The report of a run: one page that needs nothing else, predicted beside measured."""

from collections import Counter
from pathlib import Path

import numpy as np

from isthmus.folders.metrics import judged_by, metric_in_words, metrics_of
from isthmus.folders.pacing import not_held_in
from isthmus.folders.reading import read_run
from isthmus.folders.record import repaired_sentence, replanned_sentence
from isthmus.json_text import dumps
from isthmus.pages import pictures
from isthmus.pages.exchanges import exchange_table, ways_in_words
from isthmus.pages.furthest_off import furthest_off
from isthmus.pages.membership import late_sentence, lost_sentence, member_rows
from isthmus.pages.page import milliseconds, relative, write_page
from isthmus.pages.participation import participation_words
from isthmus.pages.protection import protection_words
from isthmus.pages.timeline import timeline

SENTENCES = 12  # on what more of something would save; more are not read


def write_report(folder):
    """Write `report.html` into the folder of a run, finished or not; return its path.

    Raises SettingsError in one line if the folder is not a run's or a file in it is damaged.
    """
    run = read_run(folder)
    path = Path(folder) / "report.html"
    write_page(
        path,
        "report.html",
        run=run,
        headline=headline(run),
        time_words=time_words(run),
        terms=term_rows(run),
        links=link_rows(run),
        ranks=rank_rows(run),
        events=events(run),
        members=member_rows(run),
        plan_words=[*strategy_words(run), *participation_words(run), *plan_words(run)],
        price_words=price_words(run),
        replica_words=replica_words(run),
        protection=protection_words(run),
        environment=environment(run),
        settings=dumps(run.settings, indent=2),
        paced=[what for what in ("links", "compute") if run.settings["cluster"][what] == "paced"],
        not_held=not_held_in(run),
        exchanges=exchange_table(run),
        ways=ways_in_words(run),
        timeline=timeline(run.folder, run.cluster),
        pictures=pictures.draw_all(run),
    )
    return path


def headline(run):
    """Return the numbers that come first: (value, what it is), as text."""
    numbers = []
    predicted, measured = run.step_seconds
    if run.evaluations:
        metrics = metrics_of(run.evaluations[-1])
        name = judged_by(metrics)
        numbers.append((metric_in_words(name, metrics[name], digits=1), f"test {name}"))
    if run.best:
        metrics = metrics_of(run.best)
        name = judged_by(metrics)
        numbers.append(
            (
                metric_in_words(name, metrics[name], digits=1),
                f"validation {name} of the best epoch, {run.best['step'] // run.plan['steps']}",
            )
        )
    if run.steps:
        last = run.steps[-1]
        numbers.append((f"{last['seconds']:.1f} s", f"training, {last['step']:,} steps"))
        numbers.append(
            (
                f"{1e3 * measured:.1f} ms",
                f"a step (median); predicted {1e3 * predicted:.1f} ms, {relative(predicted, measured)}",
            )
        )
    else:
        numbers.append((f"{1e3 * predicted:.1f} ms", "a step, predicted"))
    if run.summary:
        if run.link_nbytes:
            numbers.append(
                (
                    f"{run.link_nbytes / 1e6:.1f} MB",
                    "over the links; dense float32 would be "
                    f"{run.summary['dense_link_nbytes'] / 1e6:.1f} MB",
                )
            )
        numbers.append(
            (
                "equal",
                f"replicas on all {len(run.provenance['hosts'])} ranks, bit for bit: "
                f"{run.summary['parameter_hash'][:12]}",
            )
        )
    return numbers


def time_words(run):
    """Return sentences on where the time went."""
    predicted, measured = run.step_seconds
    bound = run.plan["bound_by"]
    words = [f"The plan: {bound}."]
    if measured:
        name, _, seconds = max(run.terms, key=lambda term: term[2])
        words.append(
            f"Measured: {milliseconds(measured)} ms a step, the median of {len(run.steps):,}; "
            f"most of it, {milliseconds(seconds)} ms, went into {name}. The prediction is "
            f"{relative(predicted, measured)} off."
        )
    return words + furthest_off(run)


def term_rows(run):
    """Return (term, predicted ms, measured ms, relative error) for each term that takes time."""
    return [
        (name, milliseconds(predicted), milliseconds(measured), relative(predicted, measured))
        for name, predicted, measured in [*run.terms, ("a step", *run.step_seconds)]
    ]


def plan_words(run):
    """Return sentences on what was planned."""
    plan, cluster = run.plan, run.cluster
    samples, sites = np.array(plan["samples_of_rank"]), np.array(cluster.site_of_rank)
    held = [(name, int(samples[sites == site].sum())) for site, name in enumerate(cluster.names)]
    objective = plan.get("objective", "makespan")
    counted = "; it counts steps that all sites begin together" if objective == "makespan" else ""
    words = [
        f"{plan['steps']} steps an epoch, {plan['epoch_seconds']:.3f} s predicted. Of its "
        f"objective, “{objective}”, no plan has less than {plan['lower_bound_seconds']:.3f} s (gap "
        f"{100 * plan['gap']:.2f} %){counted}."
    ]
    if len(held) <= 12:
        words.append(
            "Of "
            + f"{samples.sum():,} samples "
            + ", ".join(
                f"{name} holds {count:,} ({100 * count / max(1, samples.sum()):.0f} %)"
                for name, count in held
            )
            + "."
        )
    if tree := run.provenance.get("tree"):
        words.append(f"Planned over the sites: {tree}.")
    if plan.get("staging_seconds"):
        words.append(f"Bringing the data to the ranks takes {plan['staging_seconds']:.3g} s, predicted.")
    if plan.get("money"):
        words.append(f"An epoch costs {plan['money']:.4g} at the cluster file's prices.")
    if plan.get("stopped"):
        words.append(f"The search was stopped: {plan['stopped']}.")
    return words + [f"Warning: {warning}." for warning in plan.get("warnings", ())]


def strategy_words(run):
    """Return sentences on when sites exchanged, where that was not in every step."""
    strategy = run.settings.get("strategy") or {}
    exchanges = sum(line.get("exchanged", True) for line in run.steps)
    if not run.steps or exchanges == len(run.steps):
        return []
    chosen = "".join(
        f", {name} = {dumps(value)}" for name, value in strategy.get("arguments", {}).items()
    )
    words = [
        f"{strategy.get('kind')}{chosen}: {exchanges:,} exchanges in {len(run.steps):,} steps. Loss and "
        "accuracy of the test set are those of the anchor, which sites have in common; training loss "
        "is the sites' own."
    ]
    return words + ([f"{run.provenance['rounds']}."] if run.provenance.get("rounds") else [])


def price_words(run):
    """Return what more of each link, rate and storage would save: the plan's shadow prices."""
    prices = run.plan.get("shadow_prices")
    if prices is None:
        return []
    sentences = [f"{sentence}." for sentence in run.plan.get("sentences", ())]
    if len(sentences) > SENTENCES:
        sentences[SENTENCES:] = [f"{len(sentences) - SENTENCES} more save less each."]
    idle = [name for name, price in prices["link"].items() if not price]
    if idle:
        more = f" or {len(idle) - 6} others" if len(idle) > 6 else ""
        sentences.append(f"A faster {', '.join(idle[:6])}{more} would save nothing.")
    if not any(prices["storage"]):
        sentences.append("More storage would save nothing.")
    return sentences


def link_rows(run):
    """Return (link, bytes counted, bytes by the formula, whether they are equal)."""
    return [
        (
            f"{link['source']} → {link['target']}",
            f"{link['sent_nbytes']:,}",
            f"{link['predicted_nbytes']:,}",
            "equal" if link["sent_nbytes"] == link["predicted_nbytes"] else "differ",
        )
        for link in (run.summary["links"] if run.summary else [])
    ]


def rank_rows(run):
    """Return (site, tier, rank, shards, samples, ms of computing a step)."""
    plan, cluster = run.plan, run.cluster
    return [
        (
            cluster.names[site],
            cluster.sites[site].tier,
            rank,
            len(plan["shards_of_rank"][rank]),
            f"{plan['samples_of_rank'][rank]:,}",
            f"{1e3 * plan['seconds_of_rank'][rank]:.2f}",
        )
        for rank, site in enumerate(cluster.site_of_rank)
    ]


def replica_words(run):
    """Return a sentence on what was compared between ranks."""
    ranks = len(run.provenance["hosts"])
    if not run.replica_hashes:
        return "The ranks' parameters were not compared yet."
    times = len(run.replica_hashes)
    return (
        f"The hash of all parameters was compared between all {ranks} ranks after "
        f"{times} {'step' if times == 1 else 'steps'}: equal each time, bit for bit."
    )


def environment(run):
    """Return (what, value) of what made the run, as text."""
    made = run.provenance
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    rows = [
        ("command", " ".join(made.get("command", ()))),
        *(
            (f"began {each['started']}, left at step {each['until_step']:,}", " ".join(each["command"]))
            for each in made.get("earlier", ())
        ),
        ("isthmus", made.get("version", "?") + commit),
        ("MPI", made.get("mpi_library", "?").split("\n")[0]),
        (
            "Python",
            ", ".join(
                [
                    made.get("python", "?"),
                    *(
                        f"{package} {version}"
                        for package, version in made.get("versions", {}).items()
                        if package != "isthmus"
                    ),
                ]
            ),
        ),
        ("processor", made.get("processor", "?")),
        (
            "hosts",
            ", ".join(
                f"{host} ({ranks} {'rank' if ranks == 1 else 'ranks'})"
                for host, ranks in Counter(made["hosts"]).items()
            ),
        ),
    ]
    if made.get("slurm_job"):
        rows.append(("Slurm job", made["slurm_job"]))
    rows += [
        (f"data, {name}", f"{each['samples']:,} samples, SHA-256 {each['sha256'][:16]}")
        for name, each in made.get("data", {}).items()
    ]
    if run.plan.get("hash"):
        rows.append(("plan", run.plan["hash"][:16]))
    return rows


def events(run):
    """Return a sentence for everything out of the ordinary."""
    told = {
        "non_finite": lambda line: (
            f"step {line['step']}: a gradient was not finite (ranks "
            f"{', '.join(map(str, line['ranks'])) or 'none alone'}); "
            f"{line['action']}"
        ),
        "replanned": lambda line: f"step {line['step']}: {replanned_sentence(line)}",
        "lost": lambda line: f"step {line['step']}: {lost_sentence(line)}",
        "late": lambda line: f"step {line['step']}: {late_sentence(line)}",
        "repaired": lambda line: f"step {line['found']}: {repaired_sentence(line)}",
        "stopped": lambda line: f"stopped by a signal after step {line['step']}",
        "resumed": lambda line: f"resumed after step {line['step']}",
    }
    early = [run.summary["stopped_early"]] if run.summary and run.summary.get("stopped_early") else []
    return [told[line["kind"]](line) for line in run.metrics if line["kind"] in told] + early

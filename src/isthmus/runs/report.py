"""The report of a run: one page that needs nothing else, predicted beside measured."""

import json
from pathlib import Path

from isthmus.errors import SettingsError
from isthmus.files import write_text
from isthmus.runs import pictures
from isthmus.runs.record import replanned_sentence
from isthmus.runs.timeline import timeline
from isthmus.topology.cluster import Cluster

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(folder):
    """Write `report.html` into the folder of a run, finished or not; return its path.

    Raises SettingsError in one line if the folder is not a run's or a file in it is damaged.
    """
    from jinja2 import Environment, StrictUndefined
    folder = Path(folder)
    run, plan = _json(folder / "run.json"), _json(folder / "plan.json")
    summary = _json(folder / "summary.json") if (folder / "summary.json").exists() else None
    metrics = _metrics(folder / "metrics.jsonl")
    cluster = Cluster.from_toml(folder / "cluster.toml")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = folder / "report.html"
    write_text(path, page.render(
        name=folder.name, run=run, plan=plan, summary=summary, cluster=cluster,
        headline=headline(run, plan, summary, metrics), terms=term_rows(plan, summary),
        links=link_rows(summary), ranks=rank_rows(plan, cluster), events=events(metrics),
        paced=[what for what in ("links", "compute") if run["settings"]["cluster"][what] == "paced"],
        emulated=run.get("emulated", []), timeline=timeline(folder, cluster),
        settings=json.dumps(run["settings"], indent=2),
        pictures=pictures.draw_all(run, plan, summary, metrics, cluster)))
    return path


def headline(run, plan, summary, metrics):
    """Return the numbers that come first: (value, what it is), as text."""
    steps = [line for line in metrics if line["kind"] == "step"]
    evaluations = [line for line in metrics if line["kind"] == "evaluation"]
    numbers = []
    if evaluations:
        numbers.append((f"{100 * evaluations[-1]['accuracy']:.1f} %", "test accuracy"))
    if steps:
        numbers.append((f"{steps[-1]['seconds']:.1f} s", f"training, {steps[-1]['step']} steps"))
    if summary:
        step = summary["step"]
        numbers.append((f"{1e3 * step['measured_seconds']:.1f} ms",
                        f"a step (median); predicted {1e3 * step['predicted_seconds']:.1f} ms, "
                        f"{relative(step['predicted_seconds'], step['measured_seconds'])}"))
        sent = sum(link["sent_nbytes"] for link in summary["links"])
        if sent:
            numbers.append((f"{sent / 1e6:.1f} MB", "over the links; dense float32 would be "
                            f"{summary['dense_link_nbytes'] / 1e6:.1f} MB"))
        numbers.append(("equal", f"replicas on all {len(run['hosts'])} ranks, bit for bit: "
                        f"{summary['parameter_hash'][:12]}"))
    else:
        numbers.append((f"{1e3 * plan['step_seconds']:.1f} ms", "a step, predicted"))
    return numbers


def term_rows(plan, summary):
    """Return (term, predicted ms, measured ms, relative error) for each term that takes time."""
    if summary is None:
        return [(name, f"{1e3 * seconds:.3f}", "", "") for name, seconds in plan["terms"].items()]
    rows = [(term["name"], term["predicted_seconds"], term["measured_seconds"])
            for term in summary["terms"]
            if max(term["predicted_seconds"], term["measured_seconds"]) > 0]
    rows.append(("a step", summary["step"]["predicted_seconds"],
                 summary["step"]["measured_seconds"]))
    return [(name, f"{1e3 * predicted:.3f}", f"{1e3 * measured:.3f}",
             relative(predicted, measured)) for name, predicted, measured in rows]


def link_rows(summary):
    """Return (link, bytes sent, bytes by the formula, whether they are equal)."""
    return [(f"{link['source']} → {link['target']}", f"{link['sent_nbytes']:,}",
             f"{link['predicted_nbytes']:,}",
             "equal" if link["sent_nbytes"] == link["predicted_nbytes"] else "differ")
            for link in (summary["links"] if summary else [])]


def rank_rows(plan, cluster):
    """Return (site, tier, rank, shards, samples, ms of computing a step)."""
    return [(cluster.names[site], cluster.sites[site].tier, rank, len(plan["shards_of_rank"][rank]),
             f"{plan['samples_of_rank'][rank]:,}", f"{1e3 * plan['seconds_of_rank'][rank]:.2f}")
            for rank, site in enumerate(cluster.site_of_rank)]


def events(metrics):
    """Return a sentence for everything out of the ordinary."""
    told = {"non_finite": lambda line: f"step {line['step']}: a gradient was not finite (ranks "
                                       f"{', '.join(map(str, line['ranks'])) or 'none alone'}); "
                                       f"{line['action']}",
            "replanned": lambda line: f"step {line['step']}: {replanned_sentence(line)}",
            "resumed": lambda line: f"resumed after step {line['step']}"}
    return [told[line["kind"]](line) for line in metrics if line["kind"] in told]


def relative(predicted, measured):
    """Return the error of a prediction as text; a dash where nothing was predicted or measured."""
    return f"{100 * (predicted / measured - 1):+.1f} %" if predicted and measured else "–"


def _json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; name the folder of a run, such as "
                            "runs/NAME-DATE") from None
    except (OSError, ValueError) as problem:
        raise SettingsError(f"{path}: cannot be read ({problem}); the run's folder is damaged") from None


def _metrics(path):
    """Return the lines of metrics.jsonl; a last line that a killed run left half-written is dropped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    tables = []
    for number, line in enumerate(lines, 1):
        try:
            tables.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise SettingsError(f"{path}: line {number} is not JSON; the file is damaged: remove "
                                "that line") from None
    return tables

"""A run that goes as another one did, where the order of arrivals was left to chance."""

from pathlib import Path

from isthmus.errors import SettingsError
from isthmus.folders.contents import PlanTable, Provenance
from isthmus.folders.reading import read_metrics, read_table
from isthmus.json_text import dumps, loads
from isthmus.links.agreement import from_root, together

SAME = ("strategy", "model", "training", "allreduce", "plan")
"""Tables of the settings that decide what a trace of arrivals comes to."""


def replay_arrivals(tiers, settings, plan, manifest, member, folder):
    """Have `member` take changes in the order in which the run in `folder` had them. Collective.

    plan, manifest: where this run's shards are, and what they hold. SettingsError on every rank where
    those of the other are different, or its settings, or where it tells no arrivals.
    """

    def read():
        if settings.plan.replan:
            raise SettingsError(
                f"{folder}: cannot be replayed: plan.replan = true moves shards as clocks say"
            )
        made = read_table(Path(folder, "run.json"), Provenance)
        there, here = made["settings"], loads(dumps(settings.to_json()))
        if other := [f"[{name}]" for name in SAME if there.get(name) != here[name]]:
            raise SettingsError(
                f"{folder}: cannot be replayed: its settings differ in {', '.join(other)}; give the "
                "settings that it was started with"
            )
        same_plan = read_table(Path(folder, "plan.json"), PlanTable).get("hash") == plan.hash
        same_data = made.get("data", {}).get("train") == loads(dumps(manifest.told()))
        if not (same_data and same_plan):
            raise SettingsError(
                f"{folder}: cannot be replayed: its ranks held other samples; give the data and the "
                "cluster file that it was started with"
            )
        if not Path(folder, "summary.json").exists():
            raise SettingsError(
                f"{folder}: cannot be replayed: it has not ended; go on with it by --resume first"
            )
        found = [
            line for line in read_metrics(Path(folder, "metrics.jsonl")) if line["kind"] == "arrivals"
        ]
        if not found:
            raise SettingsError(
                f"{folder}: cannot be replayed: it tells of no arrivals; every run of this strategy "
                "ends with the same bits as it is"
            )
        return found

    lines = from_root(tiers.world, read, tiers.home)

    def take():
        try:
            member.replay(lines)
        except ValueError as problem:
            raise SettingsError(f"{folder}: cannot be replayed: {problem}") from None

    together(tiers.world, take)

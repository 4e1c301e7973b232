"""What a run that goes on must share with the one that wrote its checkpoint; in words, what differs."""

from isthmus.json_text import dumps, loads


def difference_in_words(written, identity, folder):
    """Say what of `identity` is not as it was `written`, and the cure; None where all is the same.

    Both are JSON tables. Those of a run have, in the order in which they are compared: `ranks`; `data`,
    digests by what they are for; settings by section; `sites`, what decides the order of sums; and
    `plan`, of which only the `hash` has to be equal: `cluster` (a digest), `settings` and `version` say
    why it is not. folder: that of the checkpoint.
    """
    identity = loads(dumps(identity))
    key = next(
        (
            key
            for key in {**identity, **written}
            if key != "plan" and written.get(key) != identity.get(key)
        ),
        None,
    )
    before, now = written.get("plan", {}), identity.get("plan", {})
    other_cluster = f"another cluster: use --cluster {folder}/cluster.toml"
    if key is None and before.get("hash") == now.get("hash"):
        return None
    if key == "ranks":
        return f"{identity[key]} ranks, was {written[key]}; start as many: mpirun -n {written[key]}"
    if key == "data":
        differ = [
            name
            for name in {**identity[key], **written[key]}
            if identity[key].get(name) != written[key].get(name)
        ]
        return (
            f"other data: the samples of data.{' and data.'.join(differ)} are not those that the "
            f"run has learnt from; {folder}/run.json tells which set that was"
        )
    if key == "sites" or (key in (None, "allreduce") and before.get("cluster") != now.get("cluster")):
        return other_cluster
    if key == "model" and (file := _changed(written[key], identity[key])):
        return (
            f"{file} has changed since; put it back as it was when the run wrote its checkpoint, or "
            "start without --resume"
        )
    if key is not None or before.get("settings") != now.get("settings"):
        section = key or "plan"
        leaf, old, new = _first_leaf(
            section,
            *(
                (written[key], identity.get(key))
                if key in written
                else (before.get("settings"), now.get("settings"))
            ),
        )
        return f"{leaf} = {new}, was {old}; resume with the settings in {folder}/run.json"
    return (
        f"the plan puts shards on other ranks than that of isthmus {before.get('version')}, which "
        "wrote the checkpoint; use that version"
    )


def _changed(old, new):
    """Return the first of a model's modules whose text is another one; None if all are the same."""
    before, now = (model.get("sources", {}) for model in (old, new))
    return next((file for file in before if now.get(file, before[file]) != before[file]), None)


def _first_leaf(name, old, new):
    """Return the dotted name of the first value that differs, and both values as JSON."""
    while isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**new, **old} if old.get(key) != new.get(key))
        name, old, new = f"{name}.{key}", old.get(key), new.get(key)
    return name, dumps(old), dumps(new)

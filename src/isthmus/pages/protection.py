"""What a run kept from whom, and what its model tells of samples, in words."""


def protection_words(run):
    """Return sentences on what was sealed, who could read what, and what is told of samples."""
    words = []
    if len(run.cluster.sites) > 1:
        words = [_link_words(run), _reader_words(run), _shard_words(run), _record_words(run)]
    if told := run.provenance.get("privacy"):
        words.append(privacy_words(told))
    return [sentence for sentence in words if sentence]


def protection_rows(runs):
    """Return (what, a text a run) of `outcome`s, of what any of them has kept."""
    texts = [_row_texts(run["protection"]) for run in runs]
    names = ("epsilon", "links", "sums")
    usual = dict(zip(names, ("–", "clear", "sum")))
    return [
        (name, [each[name] for each in texts])
        for name in names
        if any(each[name] != usual[name] for each in texts)
    ]


def protection_of(run):
    """Return what of it a comparison tells, ready for JSON."""
    allreduce, privacy = run.settings["allreduce"], run.settings.get("privacy", {})
    return {
        "link": run.settings.get("security", {}).get("link", "clear"),
        "secure_sum": privacy.get("secure_sum", "off"),
        "bits": privacy.get("bits"),
        "combine": allreduce.get("combine", "mean"),
        "privacy": run.provenance.get("privacy"),
    }


def privacy_words(told):
    """Return the sentence on epsilon, with all without which it says nothing.

    told: what run.json has under "privacy".
    """
    budget = f" of a budget of {told['budget']:.3g}" if told.get("budget") else ""
    return (
        f"Of each {told['unit']} the model tells epsilon {told['epsilon']:.3g} at delta "
        f"{told['delta']:g} ({told['accountant']}: {told['conversion']}; by Renyi divergences "
        f"{told['epsilon_by_rdp']:.3g}). Neighbours: {told['adjacency']}. Sampling: {told['sampling']}, "
        f"with probability {told['sampling_probability']:.4g} in each of {told['steps']:,} steps; noise "
        f"{told['noise']:g}, clip {told['clip']:g}. All runs on this set so far: "
        f"{told['epsilon_of_all_runs']:.3g}{budget}."
    )


def _link_words(run):
    if run.settings.get("security", {}).get("link") == "sealed":
        return (
            "Links between sites were sealed: who reads packets learns their sizes and times, who "
            "changes one ends the run."
        )
    return (
        "Links between sites were clear: who reads packets between them reads gradients, shards and "
        "metrics."
    )


def _reader_words(run):
    """Return who reads what a site sends."""
    privacy, allreduce = run.settings.get("privacy", {}), run.settings["allreduce"]
    names, tree = run.cluster.names, run.cluster.tree
    if privacy.get("secure_sum", "off") != "off":
        return (
            f"Sums of sites were masked (“{privacy['secure_sum']}”, {privacy['bits']} bits an entry): "
            f"{names[tree.hub]}, the hub, read their sum, and no site's part of it."
        )
    if allreduce["algorithm"] != "hierarchical":
        return f"With “{allreduce['algorithm']}” every site read sums of others on their way."
    read = {
        name: [names[site] for site in tree.children[number]]
        for number, name in enumerate(names)
        if tree.children[number]
    }
    if tree.partner is not None:
        read.setdefault(names[tree.hub], []).append(names[tree.partner])
        read.setdefault(names[tree.partner], []).append(names[tree.hub])
    told = "; ".join(f"{name} that of {', '.join(others)}" for name, others in read.items())
    robust = allreduce.get("combine", "mean")
    held = "" if robust == "mean" else f" It made the “{robust}” of them, not their sum."
    return f"Each site's own sum was read by the site that takes it: {told}.{held}"


def _shard_words(run):
    """Return which shards only some sites may read, where a set has a policy."""
    said = []
    for name, told in run.provenance.get("data", {}).items():
        kinds = [
            f"{each['shards']} for {' and '.join(each['sites'])} alone"
            for each in told.get("readers", [])
        ]
        if kinds:
            said.append(f"{name} {', '.join(kinds)}{', sealed at rest' if told.get('sealed') else ''}")
    return (
        f"Shards were read by those that their origins have signed: {'; '.join(said)}." if said else ""
    )


def _record_words(run):
    kind = run.settings.get("security", {}).get("record", "plain")
    if kind == "plain":
        return ""
    return f"The record is {kind}: isthmus verify says whether it was changed."


def _row_texts(told):
    privacy = told["privacy"]
    sums = "sum" if told["combine"] == "mean" else told["combine"]
    if told["secure_sum"] != "off":
        sums = f"masked, {told['bits']} bits"
    epsilon = "–"
    if privacy is not None:
        epsilon = f"{privacy['epsilon']:.3g} at {privacy['delta']:g}, {privacy['accountant']}"
    return {"epsilon": epsilon, "links": told["link"], "sums": sums}

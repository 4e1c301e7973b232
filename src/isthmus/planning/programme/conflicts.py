"""Why there is no plan: a smallest set of limits that cannot hold together.

An elastic programme lets every limit be exceeded and minimises by how much; what it exceeds is then
held fast, until nothing can be exceeded any more (Chinneck and Dravnieks 1991,
doi:10.1287/ijoc.3.2.157). Of what was held fast, each limit that is not needed is dropped.
"""

from dataclasses import replace

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.programme.linear_programme import Model
from isthmus.planning.programme.silence import silent

SLACK = 1e-7
"""Share of a limit that the solver may exceed and still call it kept."""


def refuse(model, done):
    """Raise PlanError for a model without a solution, with the limits in conflict in one line."""
    soft = np.concatenate(
        [
            np.arange(rows.start, rows.stop)
            for name, rows in model.blocks.items()
            if name in ("storage", "least", "budget")
        ]
        + [np.zeros(0, int)]
    ).astype(int)
    if done.status != 2 or not soft.size:
        raise PlanError(f"no plan: the solver stopped with {done.message!r}")
    held = _held_fast(model, soft)
    for row in list(held):
        rest = [other for other in held if other != row]
        if _excess(model, rest, rest)[0] > SLACK:
            held = rest
    raise PlanError(_sentence(model, held))


def _held_fast(model, soft):
    """Return soft rows that cannot hold together, found by holding fast what is exceeded."""
    held = []
    while True:
        loose = [row for row in soft if row not in held]
        total, excess = _excess(model, held + loose, loose)
        exceeded = [row for row in loose if excess.get(row, 0.0) > SLACK]
        if total == np.inf or not exceeded:
            return held or list(soft)
        held += exceeded


def _excess(model, rows_kept, elastic):
    """Return the least total by which `elastic` rows are exceeded, and by how much each; the other
    rows of `rows_kept` hold. Infinity where they cannot."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack

    rows, bound = model.rows()
    always = [
        row
        for name, part in model.blocks.items()
        if name in ("finish", "pipes")
        for row in range(part.start, part.stop)
    ]
    chosen = np.array(always + list(rows_kept), int)
    column = {row: number for number, row in enumerate(elastic)}
    places = [(number, column[row]) for number, row in enumerate(chosen) if row in column]
    slack = csr_array(
        (-np.ones(len(places)), tuple(np.array(places, int).reshape(-1, 2).T)),
        (chosen.size, len(elastic)),
    )
    weight = np.ones(len(elastic))
    storage = model.blocks["storage"]
    for number, row in enumerate(elastic):
        if storage.start <= row < storage.stop:  # a row is of one rank, and stands for its class
            weight[number] = model.groups.members[model.limited[row - storage.start]]
    equal = hstack([model.equal, csr_array((model.equal.shape[0], len(elastic)))]).tocsr()
    with silent():
        done = linprog(
            np.concatenate([np.zeros(model.size), weight]),
            A_ub=hstack([rows[chosen], slack]).tocsr(),
            b_ub=bound[chosen],
            A_eq=equal,
            b_eq=model.items.total,
            bounds=(0, None),
            method="highs",
        )
    if not done.success:
        return np.inf, {}
    return done.fun, dict(zip(elastic, done.x[model.size :]))


def _sentence(model, held):
    blocks, groups = model.blocks, model.groups
    said, cure = [], []
    total, _ = _excess(model, held, held)

    def ranks_of(name, which):
        chosen = [
            which[row - blocks[name].start]
            for row in held
            if blocks[name].start <= row < blocks[name].stop
        ]
        return np.flatnonzero(np.isin(groups.of_rank, chosen))

    if (ranks := ranks_of("storage", model.limited)).size:
        said.append(f"storage of rank{_listed(ranks)}")
        cure.append("give more storage_nbytes")
    if (ranks := ranks_of("least", model.needed)).size:
        said.append(f"least samples of rank{_listed(ranks)}")
        cure.append("demand fewer samples a rank")
    if "budget" in blocks and blocks["budget"].start in held:
        said.append("the budget")
        cure.append("raise the budget")
    if pinned := _needed_places(model, held):
        said.append(f"where shard{_listed(pinned)} may go")
        cure.append("pin fewer shards")
    storage_alone = (len(said) == 1 and said[0].startswith("storage")) or (
        len(said) == 2 and said[0].startswith("storage") and pinned
    )
    short = " cannot hold together"
    if storage_alone:
        short = f" is short by {total * model.bytes:.6g} in all"
    if storage_alone:
        cure.append("pack less data")
        names = said[0] + short + (f", given {said[1]}" if pinned else "")
    else:
        names = " and ".join(said) + (short if len(said) > 1 else " cannot be kept")
    return f"no plan: {names}; " + ", or ".join(cure)


def _needed_places(model, held):
    """Return the shards whose places are part of the conflict: opened everywhere, it is gone."""
    problem, result = model.problem, []
    for row in np.flatnonzero(~problem.places.all(axis=1)):
        places = problem.places.copy()
        places[row] = True
        opened = Model(replace(problem, places=places), model.items, model.groups)
        if _excess(opened, held, held)[0] <= SLACK:
            result.append(row)
    return [int(shard) for shard in np.flatnonzero(np.isin(problem.place_of_shard, result))]


def _listed(numbers):
    shown = ", ".join(map(str, numbers[:8]))
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{'s' if len(numbers) > 1 else ''} {shown}{more}"

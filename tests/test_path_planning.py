"""Routes by what quarters of a city learn together: nearly the oracle's, and far better than alone."""

import numpy as np
import pytest

import isthmus
from isthmus.toml_files import read_toml


@pytest.fixture(autouse=True)
def experiments(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    return repository / "experiments"


def settings_of(experiments, **changes):
    import path_planning

    from isthmus.errors import SettingsError

    table = read_toml(experiments / "path_planning.toml", SettingsError)
    return path_planning.Settings(**table | changes)


@pytest.mark.ranks(5)
def test_what_quarters_learn_together_serves_routes_nearly_as_the_oracle_does(comm, experiments):
    from path_planning import serve

    settings = settings_of(experiments, side=16, steps=640, judged_situations=3, trips=60)
    cluster = isthmus.Cluster.from_toml(experiments / settings.cluster)
    told = serve(comm, settings, cluster)
    together, rounds = told["together, every step"], told["together, every 16 steps"]
    alone = [regret for name, (regret, _) in told.items() if name.endswith("alone")]
    assert rounds[0] < 0.02  # longer than the oracle's
    assert rounds[0] < min(alone) / 1.5
    assert rounds[0] < told["empty roads"][0] / 10
    assert 16 * rounds[1] == together[1]


def test_the_oracle_has_no_regret_and_a_route_is_paid_by_its_true_times(experiments):
    from path_planning import City

    city = City.drawn(4, np.random.default_rng(0))
    _, ratio = city.situation(np.random.default_rng(1))
    true = city.empty_seconds * ratio
    corner = np.array([0, 5]), np.array([15, 5])
    best = city.routes_seconds(*corner, true, true)
    assert best[0] > 0 == best[1]
    np.testing.assert_allclose(city.routes_seconds(*corner, 2 * true, true), best)
    around = np.where((city.starts == 0) & (city.ends == 1), 1e6, true)  # believed to be closed
    assert city.routes_seconds(*corner, around, true)[0] >= best[0]
    nothing = city.routes_seconds(*corner, true, np.ones_like(true))[0]
    assert nothing == round(nothing) >= 6  # roads of a second each: as many as there are

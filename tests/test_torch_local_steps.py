"""Local steps in a PyTorch loop: the loop as it is, the bits of the serial engine, and a resume."""

import io

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.errors import CheckpointError
from isthmus.links.agreement import gather_json

torch = pytest.importorskip("torch")
STEPS, ENTRIES = 11, 12


def drift(rank, step):
    return np.random.default_rng([rank, step]).normal(size=ENTRIES).astype("f4")


class Slope(torch.nn.Module):
    """Entries in two tensors whose gradient is `drift` and half of themselves; and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.linspace(-1, 1, ENTRIES)[:8].view(2, 4).clone())
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.second = torch.nn.Parameter(torch.linspace(-1, 1, ENTRIES)[8:].clone())

    def forward(self, pull):
        flat = torch.cat([self.first.reshape(-1), self.second])
        return (flat * pull).sum() + 0.25 * (flat * flat).sum()

    def vector(self):
        return np.concatenate([self.first.detach().numpy().ravel(), self.second.detach().numpy()])


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_a_loop_exchanges_every_few_steps_with_the_bits_of_the_serial_engine_and_resumes(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:

        def make(**arguments):
            model = Slope()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
            outer = isthmus.outer.Nesterov(0.5, 0.5)
            rounds = isthmus.torch.LocalSteps(model, optimizer, tiers, every=4, outer=outer, **arguments)
            return model, optimizer, rounds

        def walk(model, optimizer, first, last):
            for step in range(first, last):
                optimizer.zero_grad()
                model(torch.from_numpy(drift(comm.rank, step))).backward()
                optimizer.step()

        model, optimizer, rounds = make()
        with rounds:
            walk(model, optimizer, 0, STEPS)
        serial = isthmus.serial_rounds(
            isthmus.LocalSteps(4, isthmus.outer.Nesterov(0.5, 0.5)),
            lambda rank, place, step: drift(rank, step) + np.float32(0.5) * place,
            np.linspace(-1, 1, ENTRIES, dtype="f4"),
            [1, 1, 1, 1],
            STEPS,
            local_steps=1,
            learning_rate=0.125,
            groups=[0, 0, 1, 1],
            ends=True,
        )
        np.testing.assert_allclose(model.vector(), serial[-1], rtol=1e-6, atol=1e-6)
        assert gather_json(comm, model.vector().tolist()) == [model.vector().tolist()] * 4
        if not comm.rank % 2:  # a leader: three exchanges of float32, of 12 entries each
            assert rounds.sent_nbytes["link"] == 3 * 4 * ENTRIES
        before = model.vector().copy()
        walk(model, optimizer, STEPS, STEPS + 1)  # the block is over: each rank is on its own again
        assert gather_json(comm, (model.vector() - before).tolist())[0:2] != [before.tolist()] * 2

        model, optimizer, rounds = make(late=2, compressor=isthmus.Int8(4))
        with rounds:
            walk(model, optimizer, 0, 5)  # the exchange of step 4 is under way
            file = io.BytesIO()
            torch.save({"rounds": rounds.state_dict(), "model": model.state_dict()}, file)
            walk(model, optimizer, 5, STEPS)
        again, optimizer, rounds = make(late=2, compressor=isthmus.Int8(4))
        file.seek(0)
        state = torch.load(file, weights_only=True)
        with pytest.raises(CheckpointError, match="another model's or another rank's"):
            rounds.load_state_dict(state["rounds"] | ({"rank": 9} if comm.rank == 1 else {}))
        with rounds:
            again.load_state_dict(state["model"])
            rounds.load_state_dict(state["rounds"])
            walk(again, optimizer, 5, STEPS)
        assert again.vector().tobytes() == model.vector().tobytes()

        for wrong, words in (({"every": 0}, "every must be"), ({"late": 4}, "late must be less than")):
            with pytest.raises(ValueError, match=words):
                isthmus.torch.LocalSteps(
                    model, optimizer, tiers, **({"every": 4} | wrong if comm.rank else {})
                )

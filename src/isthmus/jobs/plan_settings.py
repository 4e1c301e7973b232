"""The settings of a run's plan: [plan] of its file."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from isthmus.cluster.cluster_file import NotNegative
from isthmus.planning.programme.integers import NODES
from isthmus.planning.programme.objectives import OBJECTIVES, TIE_BREAKS, make_objective
from isthmus.toml_files import FrozenModel

Count = Annotated[int, Field(ge=1)]


class PlanSettings(FrozenModel):
    """What the plan is for, and its limits: the keyword arguments of `plan_shards`.

    replan: measure how fast ranks are while the run goes on, and move shards between epochs.
    tree: what the tree of sites makes small: "seconds", "money", or bytes over a link, by its name.
    """

    objective: str = "makespan"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    pinned: dict[int, str] = Field(default_factory=dict)
    forbidden: dict[int, str | tuple[str, ...]] = Field(default_factory=dict)
    least_samples: NotNegative | dict[str, NotNegative] = 0.0
    budget: NotNegative | None = None
    staged_epochs: Annotated[float, Field(ge=1)] | None = None
    then: tuple[Literal[tuple(TIE_BREAKS)], ...] = tuple(TIE_BREAKS)
    nodes: Count = NODES
    replan: bool = False
    tree: str = "seconds"

    @field_validator("objective")
    @classmethod
    def _is_an_objective(cls, value):
        make_objective(value)
        return value

    @model_validator(mode="after")
    def _plans_are_made_again_for_time_alone(self):
        again = [name for name in OBJECTIVES if make_objective(name).handled_by("replanning")]
        if self.replan and (self.objective not in again or self.budget is not None):
            allowed = " or ".join(f'"{name}"' for name in again)
            raise ValueError(f"replan = true needs objective = {allowed} and no budget")
        return self

    def limits(self):
        """Return the keyword arguments of `plan_shards`."""
        return self.model_dump(exclude={"replan", "tree"})

"""The settings of a run: one TOML file, checked whole before anything starts."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from isthmus import robust
from isthmus.cluster.cluster import Cluster
from isthmus.cluster.cluster_file import NotNegative
from isthmus.compression import COMPRESSORS
from isthmus.errors import SettingsError
from isthmus.jobs.clients import ClientsSettings, check_clients
from isthmus.jobs.combining import check_combine
from isthmus.jobs.data_settings import DataSettings
from isthmus.jobs.kinds import KindSettings
from isthmus.jobs.own_model import OwnModelSettings
from isthmus.jobs.plan_settings import PlanSettings
from isthmus.jobs.privacy_settings import PrivacySettings, check_privacy
from isthmus.jobs.recovery_settings import RecoverySettings, check_recovery
from isthmus.jobs.security_settings import SecuritySettings
from isthmus.jobs.slurm.settings import SlurmSettings
from isthmus.jobs.training_settings import TrainingSettings, check_replicas
from isthmus.models import MODELS
from isthmus.models.own_code import is_own
from isthmus.registry import ALGORITHMS
from isthmus.timing.time_model import Workload
from isthmus.toml_files import FrozenModel, check_table, read_toml
from isthmus.training.recipe import Recipe
from isthmus.training.strategies import STRATEGIES
from isthmus.training.strategies.strategy import rhythm
from isthmus.vectors import bucket_slices

Count = Annotated[int, Field(ge=1)]


class ClusterSettings(FrozenModel):
    """Which cluster, and whether this machine stands in for it."""

    file: Path
    links: Literal["real", "paced"] = "real"
    compute: Literal["real", "paced"] = "real"


class AllreduceSettings(FrozenModel):
    """How gradients are summed.

    combine: what is made of the sites' sums; all but "mean" are robust against `faulty` sites.
    """

    algorithm: Literal[*ALGORITHMS, "auto"] = "hierarchical"
    compressor: KindSettings | None = None
    error_feedback: bool = True
    buckets: Count = 1
    chunk_nbytes: Count | None = None
    largest_error: Annotated[float, Field(ge=0, le=1)] = 1e-4  # of the sum, for "auto"
    combine: Literal["mean", *robust.HOW] = "mean"
    faulty: Count = 1

    @field_validator("compressor", mode="before")
    @classmethod
    def _by_name(cls, value):
        if value in (None, "none") or isinstance(value, KindSettings):
            return None if value == "none" else value
        return KindSettings.of(value, COMPRESSORS, "compressor")

    @model_validator(mode="after")
    def _exact_algorithms_do_not_compress(self):
        if self.algorithm in ALGORITHMS:
            ALGORITHMS[self.algorithm].check_compressor(self.compressor)
        return self

    @model_validator(mode="after")
    def _robust_means_see_each_site(self):
        if self.combine == "mean":
            if self.faulty != 1:
                raise ValueError('faulty is of robust means: give combine = "median" too, or another')
            return self
        if self.algorithm == "auto":
            raise ValueError(f'combine = "{self.combine}" needs algorithm = "hierarchical", not "auto"')
        ALGORITHMS[self.algorithm].check_apart()
        chosen = self.compressor
        if chosen is not None and COMPRESSORS[chosen.kind](**chosen.arguments).sparse:
            raise ValueError(
                f'combine = "{self.combine}" takes all entries of each site, and compressor '
                f'"{chosen.kind}" leaves most of them out: take another, or none'
            )
        return self

    @property
    def robust_mean(self):
        """The RobustMean over sites; None: it is the mean of all samples."""
        return None if self.combine == "mean" else robust.RobustMean(self.combine, self.faulty)


class OutputSettings(FrozenModel):
    """Where results go, how often, and the threads of each rank's arithmetic.

    mode: of the run's folder, as in 0o700; None: as the umask has it.
    trace: note what every rank does when, and write trace.json at the end.
    stall_seconds, stall_deviations: a step is told to stall after its usual seconds and so many median
    absolute deviations, and at least after so many seconds. abort_seconds: after which a stall ends the
    job; None: it is told, and the job waits.
    """

    folder: Path = Path("runs")
    mode: int | None = None
    checkpoint_every: Count | None = None
    report_every: Count = 100
    threads: Count = 1
    trace: bool = False
    stall_seconds: Annotated[float, Field(gt=0)] = 10.0
    stall_deviations: NotNegative = 10.0
    abort_seconds: Annotated[float, Field(gt=0)] | None = None

    @field_validator("mode")
    @classmethod
    def _lets_its_owner_in(cls, value):
        if value is not None and not (0 <= value <= 0o777 and value & 0o700 == 0o700):
            raise ValueError(
                f"must let the owner in and be written in octal, as in 0o700 or 0o750, not {value}"
            )
        return value


class RunSettings(FrozenModel):
    """A run's settings file, with every path made absolute."""

    cluster: ClusterSettings
    data: DataSettings
    model: KindSettings | OwnModelSettings
    training: TrainingSettings = TrainingSettings()
    strategy: KindSettings = KindSettings(kind="synchronous", arguments={})
    clients: ClientsSettings = ClientsSettings()
    allreduce: AllreduceSettings = AllreduceSettings()
    plan: PlanSettings = PlanSettings()
    run: OutputSettings = OutputSettings()
    slurm: SlurmSettings = SlurmSettings()
    security: SecuritySettings = SecuritySettings()
    privacy: PrivacySettings = PrivacySettings()
    recovery: RecoverySettings = RecoverySettings()

    @field_validator("strategy", mode="before")
    @classmethod
    def _strategy_by_name(cls, value):
        return (
            value if isinstance(value, KindSettings) else KindSettings.of(value, STRATEGIES, "strategy")
        )

    @field_validator("model", mode="before")
    @classmethod
    def _by_name(cls, value):
        if isinstance(value, KindSettings | OwnModelSettings):
            return value
        table = value if isinstance(value, dict) else {"kind": value}
        if is_own(table.get("kind")):
            return OwnModelSettings.of(table)
        return KindSettings.of(value, MODELS, "model")

    @model_validator(mode="after")
    def _the_algorithm_can_send_over_such_links(self):
        algorithm = ALGORITHMS.get(self.allreduce.algorithm)
        if algorithm is not None and self.cluster.links == "paced":
            algorithm.check_paced()
        if algorithm is not None and self.security.link == "sealed":
            algorithm.check_sealed()
        return self

    @model_validator(mode="after")
    def _stopping_early_needs_a_judge(self):
        if self.training.stop_after is not None and self.data.validation is None:
            raise ValueError(
                "training.stop_after needs data.validation, the folder of a set that training does not "
                "learn from: `isthmus pack` makes one"
            )
        return self

    @model_validator(mode="after")
    def _others_can_go_on(self):
        check_recovery(self)
        check_replicas(self)
        return self

    @model_validator(mode="after")
    def _clients_are_played(self):
        check_clients(self)
        return self

    @model_validator(mode="after")
    def _privacy_can_be_kept(self):
        check_privacy(self)
        check_combine(self)
        return self

    @property
    def plays_clients(self):
        """Whether the strategy has clients, each with its own samples."""
        return STRATEGIES[self.strategy.kind].plays_clients

    @classmethod
    def from_toml(cls, path):
        """Read a run's settings; paths in it are relative to its folder. Raises SettingsError."""
        table = read_toml(path, SettingsError)
        if "site" in table:
            raise SettingsError(
                f"{path}: is a cluster file; give a run's settings, which name it under [cluster] file"
            )
        settings = check_table(cls, table, path, SettingsError)
        settings = settings.with_paths_from(Path(path).resolve().parent)
        settings.security.keep_keys_out_of([settings.run.folder, *settings.data.folders], path)
        return settings

    @classmethod
    def from_json(cls, table, source):
        """Return the settings that `to_json` wrote."""

        def flat(named):
            return named and {"kind": named["kind"], **named["arguments"]}

        allreduce, training, clients = table["allreduce"], table["training"], table["clients"]
        table = {
            **table,
            "model": (
                OwnModelSettings(**table["model"])
                if is_own(table["model"]["kind"])
                else flat(table["model"])
            ),
            "training": {**training, "optimizer": flat(training["optimizer"])},
            "strategy": flat(table["strategy"]),
            "clients": {**clients, "split": flat(clients["split"])},
            "allreduce": {**allreduce, "compressor": flat(allreduce["compressor"])},
        }
        return check_table(cls, table, source, SettingsError)

    def to_json(self):
        return self.model_dump(mode="json")

    def with_paths_from(self, folder):
        """Return the settings with relative paths, and the user's own modules, taken from `folder`."""

        def absolute(section, *names):
            return section.model_copy(
                update={
                    name: (folder / getattr(section, name)).resolve()
                    for name in names
                    if getattr(section, name) is not None
                }
            )

        model = self.model
        return self.model_copy(
            update={
                "model": model.located(folder) if isinstance(model, OwnModelSettings) else model,
                "cluster": absolute(self.cluster, "file"),
                "data": absolute(self.data, "train", "test", "validation", "cache"),
                "clients": absolute(self.clients, "speeds", "available"),
                "run": absolute(self.run, "folder"),
                "security": self.security.located(folder),
            }
        )

    def with_cluster(self, path):
        """Return the settings with another cluster file."""
        file = Path(path).resolve()
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={"file": file})})

    def with_real_links(self):
        """Return the settings with links that are as slow as they are."""
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={"links": "real"})})

    def with_allreduce(self, table):
        """Return the settings with another allreduce, as `to_json` writes it."""
        compressor = table["compressor"] and KindSettings(**table["compressor"])
        allreduce = self.allreduce.model_copy(update=table | {"compressor": compressor})
        return self.model_copy(update={"allreduce": allreduce})

    def with_strategy(self, arguments):
        """Return the settings with other arguments of the strategy."""
        table = {"kind": self.strategy.kind, **arguments}
        return self.model_copy(update={"strategy": KindSettings.of(table, STRATEGIES, "strategy")})

    def read_cluster(self):
        return Cluster.from_toml(self.cluster.file)

    def make_model(self):
        """Return the model; one of the user's own is made once, others are numbers alone."""
        if isinstance(self.model, OwnModelSettings):
            return self.model.make(self.run.threads)
        return MODELS[self.model.kind](**self.model.arguments)

    def make_strategy(self):
        return STRATEGIES[self.strategy.kind](**self.strategy.arguments)

    def make_optimiser(self):
        """Return the optimiser, which knows which of the model's tensors decay. Raises SettingsError."""
        return self.training.make_optimiser().on(self.make_model())

    def make_compressor(self):
        """Return the compressor, which knows the model's shapes where it asks for them."""
        chosen = self.allreduce.compressor
        if chosen is None:
            return None
        kind = COMPRESSORS[chosen.kind]
        known = (
            {"shapes": self.make_model().matrix_shapes} if "shapes" in kind.__dataclass_fields__ else {}
        )
        return kind(**known | chosen.arguments)

    def make_wires(self):
        """Return what turns vectors into what crosses sites; None: they cross as float32."""
        return self.privacy.wires or self.make_compressor()

    def make_buckets(self):
        """Return the slices of the gradient that are started as they become ready."""
        return bucket_slices(self.make_model().tensor_slices, self.allreduce.buckets)

    def workload(self, sample_nbytes=0):
        """Return what one epoch asks of the cluster. SettingsError where the strategy cannot work."""
        strategy = self.make_strategy()
        size, compressor = self.make_model().size, self.make_wires()
        try:
            strategy.fits(size, compressor, self.allreduce.error_feedback)
        except ValueError as problem:
            raise SettingsError(f"[strategy]: {problem}") from None
        beat = rhythm(strategy)
        optimiser, clips = self.training.make_optimiser(), self.training.clip_norm is not None
        return Workload(
            size=size,
            batch_size=self.training.batch_size,
            # Buckets are of gradients, which may never cross a link.
            buckets=tuple(self.make_buckets()) if beat["site_sums_per_step"] == 0 else (),
            chunk_nbytes=self.allreduce.chunk_nbytes,
            algorithm=self.allreduce.algorithm,
            compressor=compressor,
            combine=self.allreduce.robust_mean,
            sealed=self.security.link == "sealed",
            secure=None if self.privacy.secure_sum == "off" else self.privacy.secure_sum,
            private=self.privacy.unit,
            sample_nbytes=sample_nbytes,
            data_site=self.data.site,
            optimiser=f"{optimiser!r}{' of what is clipped' if clips else ''}",
            update_nbytes=size * (optimiser.moved_nbytes_per_entry + 4 * clips),
            **beat,
        )

    def recipe(self, steps):
        """Return how to train for epochs of `steps` steps. Raises SettingsError."""
        total, warmup = self.training.epochs * steps, self.training.warmup_steps
        if warmup >= total:
            raise SettingsError(
                f"training.warmup_steps = {warmup} must be less than the run's {total} steps; "
                "give fewer, or more epochs"
            )
        return Recipe(
            steps=steps,
            checkpoint_every=self.run.checkpoint_every,
            report_every=self.run.report_every,
            optimiser=self.make_optimiser(),
            **self.training.model_dump(exclude={"batch_size", "optimizer", "momentum", "on_replica"})
            | self.privacy.of_recipe,
        )

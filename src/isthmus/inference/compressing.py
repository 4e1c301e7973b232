"""Make a ladder of smaller models, and judge each beside the one that it is made from."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from isthmus.errors import SettingsError, ShardError
from isthmus.folders.stored_weights import FORMS, StoredWeights
from isthmus.folders.trained_model import TrainedModel
from isthmus.inference.ladder import Ladder, Rung, Student, paired_change
from isthmus.inference.narrowing import WIDTHS, narrowed
from isthmus.inference.tuning import Distilled, tuned
from isthmus.models.losses import Loss
from isthmus.models.scoring import ROWS, scores_of
from isthmus.quantities import real, whole
from isthmus.shards.shard_file import ShardSet

WEIGHTS = ("float32", *FORMS)
PRUNED = 0.25
"""The share of each matrix's entries that pruning keeps: the largest ones."""
RISK = 0.05
"""How often a ladder may have any rung that passes and should not."""
ROUNDS = 20

Samples = ShardSet | str | os.PathLike[str] | tuple[npt.NDArray[Any], npt.NDArray[Any]]


def compress(
    model: Any,
    parameters: npt.NDArray[np.float32],
    *,
    validation: Samples,
    weights: str | Iterable[str] = FORMS,
    keep: float | Iterable[float] = (1.0, 0.5, 0.375, 0.25),
    accuracy_loss: float = 0.005,
    training: Samples | None = None,
    teacher: tuple[Any, npt.NDArray[np.float32]] | None = None,
    temperature: float = 1.0,
    epochs: int = 12,
    seed: int = 0,
    tell: Callable[[str], Any] = lambda line: None,
) -> Ladder:
    """Return a Ladder of smaller models than a trained one; its `best` is the smallest that passes.

    One passes where, at a lower bound, its accuracy on `validation`, or r2 of a regression, is no more
    than `accuracy_loss` below the model's; that any passes which should not happens in 5 of 100 ladders
    at most. One process works; the same seed gives the same bits.
    model, parameters: what `load_model` gives, or a built-in model. weights: some of "float32", "int8",
    "int4", and "pruned", a quarter of the entries in int8. keep: shares of the units of inner layers, in
    (0, 1]. validation, training: a packed set, its folder, or (features, targets). training: what
    pruned and narrower models learn on from, for so many epochs; without it they stay as they are cut.
    teacher: (model, parameters) that they learn from in another try, at that temperature.
    tell: called with the name of each rung. Raises ValueError, or SettingsError and ShardError where the
    model or the data will not do.
    """
    weights = _several("weights", weights, str)
    if wrong := [each for each in weights if each not in WEIGHTS]:
        raise ValueError(f"weights must be of {', '.join(WEIGHTS)}, not {wrong[0]!r:.40}")
    keep = _several("keep", keep, (int, float, np.number))
    if wrong := [each for each in keep if not 0 < real("keep", each) <= 1]:
        raise ValueError(f"keep must be more than 0 and at most 1, not {wrong[0]}")
    if real("temperature", temperature) <= 0:
        raise ValueError(f"temperature must be more than 0, not {temperature}")
    told = {
        "accuracy_loss": real("accuracy_loss", accuracy_loss, least=0, most=1),
        "epochs": whole("epochs", epochs, least=1) if training is not None else 0,
        "seed": whole("seed", seed, least=0),
    }
    trained = model if isinstance(model, TrainedModel) else None
    inner = _inner(model)
    if not {"accuracy", "r2"} & {*inner.loss.metrics}:
        raise SettingsError("the model is judged by neither accuracy nor r2; only such are compressed")
    parameters = np.asarray(parameters, np.float32)
    if parameters.shape != (inner.size,) or not np.isfinite(parameters).all():
        raise SettingsError(f"the parameters are not {inner.size} finite numbers; train the model again")
    if teacher and type(inner) not in WIDTHS:
        raise SettingsError("a teacher is for built-in models; leave it out")
    if teacher and training is None:
        raise SettingsError("a teacher needs training samples; name the folder of some")
    with threadpool_limits(_threads(model)):
        original = Student(inner, parameters, inner.buffers())
        workshop = _Workshop(
            original,
            _samples(model, validation),
            None if training is None else _samples(model, training),
            *_lesson(inner, training, teacher, temperature),
            told["epochs"],
            told["seed"],
            tell,
        )
        rungs, notes = [workshop.rung(original, "float32")], []
        for share in sorted({*map(float, keep)}, reverse=True):
            for taught in (False, True)[: 1 + bool(teacher)]:
                try:
                    student = workshop.student(share, taught)
                except ValueError as problem:
                    notes.append(f"narrower models are left out: {problem}")
                    break
                rungs += [
                    workshop.rung(student, form)
                    for form in dict.fromkeys(weights)
                    if student is not original or form != "float32"
                ]
        seconds = workshop.seconds_per_sample(rungs)
        inner.set_buffers(original.buffers)
    judged = _judged(rungs, seconds, told["accuracy_loss"])
    return Ladder(tuple(judged), tuple(dict.fromkeys(notes)), told, trained)


def judge(ladder: Ladder, model: Any, samples: Samples) -> dict[str, Any]:
    """Return what samples say of the best rung: its metrics, and the change of accuracy or r2.

    model: what was compressed. For a set that chose nothing, once: after a choice by it, it says too
    much.
    """
    with threadpool_limits(_threads(model)):
        features, targets = _samples(model, samples)
        scores = [_scores(rung.student, features) for rung in (ladder.rungs[0], ladder.best)]
        _inner(model).set_buffers(ladder.rungs[0].student.buffers)
    before, after = (_merits(model.loss, each, targets) for each in scores)
    change, low, high = paired_change(before, after)
    metrics = model.loss.metrics_of(model.loss.sums(scores[1], targets))
    return {"metrics": metrics, "samples": len(targets), "change": change, "low": low, "high": high}


@dataclass(frozen=True, eq=False)
class _Workshop:
    """What rungs are made with.

    validation, learning: (features as `original.model` takes them, targets). lesson: targets with a
    teacher's scores, for models with the loss `from_teacher`.
    """

    original: Student
    validation: tuple[np.ndarray, np.ndarray]
    learning: tuple[np.ndarray, np.ndarray] | None
    lesson: np.ndarray | None
    from_teacher: Loss | None
    epochs: int
    seed: int
    tell: Callable[[str], Any]

    def student(self, keep, taught):
        """Return the original with a share of its units, tuned; ValueError where it has none to go."""
        original = self.original
        if keep == 1:
            return self._tuned(replace(original, taught=True)) if taught else original
        model, parameters, widths = narrowed(original.model, original.parameters, keep)
        return self._tuned(Student(model, parameters, original.buffers, keep, taught, widths))

    def rung(self, student, form):
        """Return the Rung of a student whose weights are stored as `form`."""
        if form == "pruned":
            kept = _largest(student)
            student = replace(student, parameters=student.parameters * kept)
            student = self._tuned(student, kept)
        tensors = student.model.views(student.parameters)
        outputs_last = not hasattr(student.model, "module")  # PyTorch has them first
        tried = {
            name: form != "float32" and StoredWeights.of(form, tensor, outputs_last)
            for name, tensor in tensors.items()
        }
        stored = {name: each for name, each in tried.items() if each}
        answers = [stored[name].tensor() if name in stored else tensors[name] for name in tensors]
        student = replace(student, parameters=np.concatenate([each.reshape(-1) for each in answers]))
        arrays = [stored[name].wire if name in stored else tensors[name] for name in tensors]
        nbytes = sum(each.nbytes for each in (*arrays, *student.buffers.values()))
        features, targets = self.validation
        merits = _merits(student.model.loss, _scores(student, features), targets)
        rung = Rung(form, student, stored, nbytes, merits)
        self.tell(f"{rung.name}: {rung.metric} {100 * rung.accuracy:.2f} %")
        return rung

    def seconds_per_sample(self, rungs):
        """Return how long each rung takes: the least of rounds in which all take turns."""
        features = self.validation[0][:ROWS]
        took = np.empty((ROUNDS, len(rungs)))
        for turn in took:
            for number, rung in enumerate(rungs):
                start = time.perf_counter()
                _scores(rung.student, features)
                turn[number] = time.perf_counter() - start
        return (took.min(axis=0) / len(features)).tolist()

    def _tuned(self, student, kept=None):
        if self.learning is None:
            return student
        model, (features, targets) = student.model, self.learning
        if student.taught:
            model, targets = replace(model, loss=self.from_teacher), self.lesson
        model.set_buffers(student.buffers)
        parameters = tuned(
            model, student.parameters, features, targets, epochs=self.epochs, seed=self.seed, kept=kept
        )
        return replace(student, parameters=parameters, buffers=model.buffers())


def _judged(rungs, seconds, accuracy_loss):
    """Return the rungs with what they change, what they take, and verdicts that hold all together.

    Of many rungs one would pass by luck. So those that differ only in their units are asked in turn, the
    widest first, and after one that does not pass no other does (a fixed sequence: Maurer et al. 1995);
    the chains of them share the risk out (Bonferroni).
    """
    chains = {(rung.weights, rung.student.taught): True for rung in rungs[1:]}  # whether all have passed
    judged = []
    for rung, took in zip(rungs, seconds):
        change, low, high = paired_change(rungs[0].merits, rung.merits, RISK / max(len(chains), 1))
        chain = rung.weights, rung.student.taught
        verdict = "passes" if low >= -accuracy_loss else "loses" if high < -accuracy_loss else "open"
        if rung is rungs[0]:
            change, low, high, verdict = 0.0, 0.0, 0.0, "as it was"
        elif not chains[chain] and verdict == "passes":
            verdict = "open"
        else:
            chains[chain] = verdict == "passes"
        judged.append(
            replace(rung, change=change, low=low, high=high, seconds_per_sample=took, verdict=verdict)
        )
    return judged


def _scores(student, features):
    student.model.set_buffers(student.buffers)
    return scores_of(student.model, student.parameters, features)


def _merits(loss, scores, targets):
    """Return what each sample says for a model: see Rung. ShardError where targets do not vary."""
    if "accuracy" in loss.metrics:
        return scores.argmax(axis=1) == targets
    targets = np.asarray(targets, np.float64).reshape(scores.shape)
    about = ((targets - targets.mean(axis=0)) ** 2).sum() / len(targets)
    if not about:
        raise ShardError("all targets are alike, so that r2 says nothing; take other samples")
    return 1 - ((scores - targets) ** 2).sum(axis=1) / about


def _largest(student):
    """Return bool[size]: the largest entries of each matrix, and all of the other tensors."""
    kept = np.ones(student.parameters.size, bool)
    for part, shape in zip(student.model.tensor_slices, student.model.shapes.values()):
        if len(shape) > 1:
            order = np.argsort(-np.abs(student.parameters[part]), kind="stable")
            kept[part][order[max(1, round(PRUNED * order.size)) :]] = False
    return kept


def _several(name, given, kinds):
    """Return one or several of a kind as a tuple; ValueError if there is none, or of another kind."""
    if isinstance(given, kinds):
        return (given,)
    try:
        several = tuple(given)
    except TypeError:
        several = ()
    if not several or not all(isinstance(each, kinds) for each in several):
        raise ValueError(f"{name} must be one or several, not {given!r:.60}")
    return several


def _samples(model, given):
    """Return features, as the model inside takes them, and targets of a set; ShardError if unfit."""
    what, trained = "the samples", isinstance(model, TrainedModel)
    if isinstance(given, tuple):
        features, targets = map(np.asarray, given)
    else:
        shards = given if isinstance(given, ShardSet) else ShardSet.open(given)
        what = shards.folder
        if trained:
            model.check_shards(shards)
        if not sum(shards.samples):
            raise ShardError(f"{what}: holds no samples; pack some")
        read = [list(shards.read(number).values()) for number in range(len(shards.samples))]
        features, targets = map(np.concatenate, zip(*(each[:2] for each in read)))
    complaint = model.loss.complaint(targets, model.outputs)
    if complaint or not 0 < len(targets) == len(features):
        raise ShardError(f"{what}: {f'targets {complaint}' if complaint else 'no targets to features'}")
    return (model.prepared(features) if trained else features), targets


def _lesson(model, training, teacher, temperature):
    """Return the training targets with a teacher's scores, and the loss for them; None of no teacher.

    Of a regression they are means of both: half the squared error of each has the same slope.
    """
    if teacher is None:
        return None, None
    features, targets = _samples(teacher[0], training)
    scores = scores_of(_inner(teacher[0]), teacher[1], features)
    if scores.shape[1] != model.outputs:
        raise SettingsError(
            f"the teacher has {scores.shape[1]} outputs, the model {model.outputs}; take one of the "
            "same kind"
        )
    if "accuracy" not in model.loss.metrics:
        return ((targets.reshape(scores.shape) + scores) / 2).astype(np.float32), model.loss
    return np.column_stack([targets, scores]).astype(np.float32), Distilled(temperature)


def _threads(model):
    """Return on how many threads products are made: their bits depend on it."""
    return model.table["threads"] if isinstance(model, TrainedModel) else 1


def _inner(model):
    """Return the model that takes features as training gave them."""
    return model.model if isinstance(model, TrainedModel) else model

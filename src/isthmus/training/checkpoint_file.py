"""The file of a checkpoint: arrays and a table, under one digest of every byte (`checked_files`)."""

from isthmus.checked_files import CheckedKind
from isthmus.errors import CheckpointError

CHECKPOINT = CheckedKind(
    word="checkpoint",
    version=6,
    error=CheckpointError,
    cure="start without --resume",
    missing="no such checkpoint; set run.checkpoint_every, or start without --resume",
    bare="3 or older",
)

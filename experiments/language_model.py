"""Language models of characters on Debian's `fortunes`: a convex one, and a transformer.

    python experiments/language_model.py          the convex one under five strategies, half a minute

It has a logit for each character after each character. No logits take fewer bits a character than the
conditional entropy of the text's own counts: so it tells how far from the optimum a strategy ends. Two
sites hold the first and the second half of the files. No ranks are started.

The transformer, `make_net` and `loss`, is what language_model_study.py has `isthmus train` train.
The texts: apt-get install fortunes.
"""

import math
import sys
from pathlib import Path

import numpy as np

from isthmus.errors import IsthmusError, ShardError

FORTUNES = Path("/usr/share/games/fortunes")
LENGTH = 64  # of a block


def read_texts(folder=FORTUNES):
    """Return the text of each file of fortunes, by name. ShardError where there are none."""
    files = sorted(path for path in folder.glob("*") if path.suffix == "" and not path.is_symlink())
    if not files:
        raise ShardError(f"{folder}: holds no fortunes; install them with: apt-get install fortunes")
    return [path.read_text(errors="replace") for path in files]


def coded(texts):
    """Return [int16 codes of the characters of each text], and how many kinds of them there are."""
    alphabet = {kind: code for code, kind in enumerate(sorted(set().union(*texts)))}
    return [np.array([alphabet[kind] for kind in text], np.int16) for text in texts], len(alphabet)


# The bigram model


def pair_counts(codes, kinds):
    """Return float64[kinds, kinds]: how often each character follows each, in all of the texts."""
    counts = np.zeros((kinds, kinds))
    for each in codes:
        np.add.at(counts, (each[:-1], each[1:]), 1)
    return counts


def bits(counts, logits=None):
    """Return the bits a character that these logits take on average, or the best ones there are."""
    logits = np.log(np.maximum(counts, 1e-300)) if logits is None else logits
    scale = np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(-np.sum(counts * (logits - scale)) / counts.sum() / math.log(2))


def bigram_gradient(counts_of_site):
    """Return the gradient(site, logits, step) of the mean loss of a site's own counts.

    Rows are as unlike as characters are frequent: each is divided by how frequent its character is at
    all sites together, which is a learning rate of its own, the same everywhere.
    """
    rows = sum(counts_of_site).sum(axis=1, keepdims=True)
    share = np.maximum(rows, 1) / rows.sum()

    def gradient(site, logits, step):
        counts = counts_of_site[site]
        square = logits.reshape(counts.shape)
        chances = np.exp(square - np.logaddexp.reduce(square, axis=1, keepdims=True))
        slope = (counts.sum(axis=1, keepdims=True) * chances - counts) / counts.sum()
        return (slope / share).ravel()

    return gradient


def bigram_rows(counts_of_site, steps=200, learning_rate=2.0):
    """Return (strategy, exchanges, bits) after as many steps, and the bits of the optimum."""
    import isthmus

    counts = sum(counts_of_site)
    nesterov = isthmus.outer.Nesterov(0.7, 0.9)
    strategies = {
        "synchronous": isthmus.Synchronous(),
        "8 local steps": isthmus.LocalSteps(8),
        "40 local steps": isthmus.LocalSteps(40),
        "DiLoCo, 8 steps": isthmus.LocalSteps(8, nesterov),
        "streaming, 4 fragments each 8 steps": isthmus.Streaming(4, 8, late=1, outer=nesterov),
    }
    rows = []
    for name, strategy in strategies.items():
        history = isthmus.serial_rounds(
            strategy,
            bigram_gradient(counts_of_site),
            np.zeros(counts.size),
            [each.sum() for each in counts_of_site],
            rounds=1,
            local_steps=steps,
            learning_rate=learning_rate,
            ends=True,
        )
        sent = sum(each.share for each in strategy.exchanges(steps))
        rows.append((name, sent, bits(counts, history[-1].reshape(counts.shape))))
    return rows, bits(counts)


def tell_bigram():
    codes, kinds = coded(read_texts())
    half = len(codes) // 2
    rows, optimum = bigram_rows([pair_counts(part, kinds) for part in (codes[:half], codes[half:])])
    print(f"{sum(map(len, codes)):,} characters of {kinds} kinds; the optimum: {optimum:.6f} bits")
    for name, exchanges, found in rows:
        print(f"{name:38} {exchanges:6g} exchanges  {found:.6f} bits, {found - optimum:.6f} above")


# The transformer


def make_net(inputs=(LENGTH,), kinds=128, width=128, layers=5, heads=4, start=None):
    """Return a transformer of a million parameters that scores each next character of a block.

    start: a file of NumPy's with the parameters that it begins with, float32[size], one after another.
    """
    import torch
    from torch import nn

    length = inputs[0]

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.characters = nn.Embedding(kinds, width)
            self.places = nn.Parameter(0.02 * torch.randn(length, width))
            layer = nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.layers = nn.TransformerEncoder(
                layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
            )
            self.scores = nn.Linear(width, kinds)
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, blocks):
            seen = self.layers(self.characters(blocks) + self.places, mask=self.mask, is_causal=True)
            return self.scores(seen).flatten(1)

    net = Transformer()
    if start is not None:
        nn.utils.vector_to_parameters(torch.from_numpy(np.load(start)), net.parameters())
    return net


def loss(scores, targets):
    """Return the mean cross-entropy of each next character, in nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(scores.reshape(targets.numel(), -1), targets.reshape(-1))


if __name__ == "__main__":
    try:
        tell_bigram()
    except IsthmusError as problem:
        sys.exit(str(problem))

"""What is learned: models on one flat vector of parameters."""

from isthmus.models.convolutional import Convolutional
from isthmus.models.perceptron import Perceptron

__all__ = ["MODELS", "Convolutional", "Perceptron"]

MODELS = {"perceptron": Perceptron, "convolutional": Convolutional}
"""Name in a settings file -> class."""

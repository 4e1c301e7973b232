"""What is learned: models on one flat vector of parameters."""

"""One model, one step at a time, the same bits on every rank."""

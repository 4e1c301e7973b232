"""The command line: one verb a function, no logic of its own."""

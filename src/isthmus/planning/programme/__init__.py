"""The best allocation: terms, linear programmes, whole numbers, and searches."""

"""How ranks reach one another: communicators, what wraps them, and what all ranks agree on."""

"""Who a site is, and the keys that sites agree on. `cryptography`, the extra isthmus[security]."""

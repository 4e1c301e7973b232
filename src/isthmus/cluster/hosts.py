"""Whether two names are of one host."""

import ipaddress


def is_same_host(name, other):
    """Return whether two names are of one host: whole names are compared whole.

    Only a short one, `n1`, is compared with the first part of the other, `n1.edge.org`. IP addresses are
    names without parts. Case does not matter.
    """
    names = [word.rstrip(".").lower() for word in (name, other)]
    if any(map(_is_address, names)) or all("." in word for word in names):
        return names[0] == names[1]
    return names[0].partition(".")[0] == names[1].partition(".")[0]


def _is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

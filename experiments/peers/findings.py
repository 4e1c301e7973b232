"""What the lines of compare_peers.jsonl say."""


def tell_findings(path):
    pass

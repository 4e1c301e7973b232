"""What the machines are: sites, ranks and links (`cluster`), and their communicators (`tiers`)."""

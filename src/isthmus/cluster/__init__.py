"""What the machines are: sites, their ranks, and the links between them, as a cluster file has them."""

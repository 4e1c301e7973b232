"""What machines, networks and links are, measured: `isthmus calibrate`."""

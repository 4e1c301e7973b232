"""What a user starts: settings, the main job from preparation to summary, and jobs of Slurm."""

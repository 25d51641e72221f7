"""What robosuite's robots have in common, whichever package brings the tasks: commands and snapshots."""

"""The commands of the programs, one file each."""

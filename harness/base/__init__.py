"""What everything else stands on: errors, files, paths, units, random numbers, compiled loops."""

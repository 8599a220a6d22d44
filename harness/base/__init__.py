"""The base of all other packages: errors, files, paths, units, random numbers, compiled loops."""

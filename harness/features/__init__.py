"""Features in HDF5: files that are whole or absent, and rows that are read fast."""

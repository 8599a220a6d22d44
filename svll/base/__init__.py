"""What all of svll speaks of: images with labels, protocols, files of features and of runs."""

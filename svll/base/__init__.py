"""Shared ground of svll: records of images, protocols, feature files, files of runs."""

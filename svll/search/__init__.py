"""Search in folders of images."""

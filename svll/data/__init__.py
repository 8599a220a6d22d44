"""Records of images, readers of benchmark folders, and a drawn world to stand in for one."""

"""From image files to views: decoding, augmentation, DALI."""

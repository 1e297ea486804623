"""Training and testing a segmentation network: losses, schedules, paired augmentation, CCT, multi-scale test time."""

"""What the fits of several methods share."""

"""The first edition of Storybook: the drawings that the shipped storybook-clip was trained on.

It stays until a CLIP trained on the second edition ships; this folder then goes.
"""

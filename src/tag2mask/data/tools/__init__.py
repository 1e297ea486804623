"""Masks in the formats of other tools: written for them, and read back when a person has corrected them there."""

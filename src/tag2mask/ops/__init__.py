"""Pure tensor functions: no files, no globals, no model classes."""

"""The run folder: atomic files, manifest, locks; shards, devices, progress."""

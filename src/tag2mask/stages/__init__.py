"""Folder in, folder out: label, evaluate, report, export. Each can be stopped and run again."""

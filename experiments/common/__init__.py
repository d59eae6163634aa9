"""Shared by all programs: errors, files, checkpoints, progress, processes."""

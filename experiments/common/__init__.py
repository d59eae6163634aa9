"""What all programs share: errors, files, checkpoints, progress, processes."""

"""The process and its folder: flags, errors, signals, files, checkpoints, metrics, memory."""

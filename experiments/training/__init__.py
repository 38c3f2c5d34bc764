"""Training runs: settings, models, loops, and what they leave behind."""

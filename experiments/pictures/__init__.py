"""Every picture, drawn without a display."""

import matplotlib

matplotlib.use("Agg")

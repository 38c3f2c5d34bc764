"""The optimizer of networks that are trained once, such as judges and encoders."""

import optax


def cosine_adamw(
    peak: float, num_steps: int, *, num_warmup: int, weight_decay: float
) -> optax.GradientTransformation:
    """Returns AdamW under a rate that rises linearly from 0 and falls to 0 as a cosine.

    Args:
      peak: largest learning rate, after the warm-up.
      num_steps: number of steps in all.
      num_warmup: steps of the warm-up.
      weight_decay: AdamW's, in units of the learning rate.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, num_warmup, num_steps)
    return optax.adamw(schedule, weight_decay=weight_decay)

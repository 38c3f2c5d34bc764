"""Binaries built on kernelgrad; `python -m experiments.<name> --help` lists the flags of each.

train                 trains a generator: any objective on any data set
sweep                 trains a grid of runs, by one program or any scheduler
evaluate              judges the images of a trained generator
compare               trains one generator under several objectives, at equal steps and equal time
sample                draws from a trained generator, or from the density that its critic adds
latent_walk           films what a trained generator makes of a walk through its latents
toy                   films a generator that follows any objective to a density in the plane
divergences           draws what KL, JSD, KALE and W1 see of laws, and certificates on W1
gan_diagnostics       watches the gradients that a discriminator gives a frozen generator
classification_score  trains classifiers on generated images and tests them on real ones
spectrum              shows what the ridge of a trained run leaves of its kernel's modes
two_sample            counts how often tests tell two laws apart, under learned kernels
density_estimation    fits unnormalised densities by KALE and its rivals
neural_sampler        trains networks to draw from a density, by amortized SVGD
svgd_posterior        moves particles to the posterior of a logistic regression by SVGD
rbm                   trains Boltzmann machines by amortized maximum likelihood
reproduce             makes a page of results again, and says claim by claim what came out

Everything else: run, pictures, data, networks, targets, judges, training, reports, sweeps, papers.
"""

from experiments.run import places

places.settle_matplotlib()

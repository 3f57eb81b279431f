"""The one table of tolerances (maximum absolute error of a unit-scale fp32 output); no test carries its own."""

MODULE = 1e-5  # a module against diffusers or transformers, and a mesh against one process
VAE = 1e-4  # the whole autoencoder, both ways
NOISE = 5e-7  # our Gaussian numbers against torch's
PIXEL_LEVELS = 1  # of 255, pictures of two meshes
PIPELINE = 1e-5  # latents after 4 steps with guidance, in units of their standard deviation

"""Pictures made from words: a small diffusion model, and the noise that it begins with, edited to fit a layout."""

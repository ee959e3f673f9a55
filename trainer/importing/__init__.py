"""Teachers that people already have, turned into checkpoint folders: EDM's pickles and diffusers' folders."""

"""One file per source of images; each has a function that returns an `ImageSet`."""

"""A student as a folder of diffusers, which loads and samples it without fewstep."""

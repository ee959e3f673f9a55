"""Critics: what tells a student's outputs from real images, on frozen features."""

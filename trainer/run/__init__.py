"""Running a method: the loop, its state, averages, devices, processes, and what a checkpoint holds."""

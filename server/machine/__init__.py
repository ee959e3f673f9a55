"""What suits this machine: call times, measured once and kept, and the layout of processes they ask for."""

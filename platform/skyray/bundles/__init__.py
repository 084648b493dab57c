"""What a training leaves for use: bundles and their registry."""

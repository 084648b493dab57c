"""Networks, one architecture a file. Pure torch."""

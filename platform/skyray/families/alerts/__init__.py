"""Alert streams: bright transients among everything that varies, moves or is not real."""

"""What single families add to the engine's verbs: whole jobs made of its parts."""

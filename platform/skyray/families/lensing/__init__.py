"""Strong lenses: what dark matter they hold, learnt on one telescope and answered on another."""

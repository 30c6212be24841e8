"""The local server: the platform on one machine, for development, tests and small set-ups."""

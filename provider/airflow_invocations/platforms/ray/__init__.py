"""Ray Jobs, spoken to over HTTP: no Ray package is imported."""

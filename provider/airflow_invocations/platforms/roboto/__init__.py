"""Roboto and the local server: the invocation API over HTTP."""

"""The HTTP API of the server: routes, requests and responses."""

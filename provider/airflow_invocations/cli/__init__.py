"""The command line: `invocations serve`, `check`, `demo` and what administers a server."""

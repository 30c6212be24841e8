"""Every platform has to pass the same cases; only what it declares that it can't do is skipped."""

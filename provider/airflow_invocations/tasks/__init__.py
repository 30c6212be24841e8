"""What one task instance does with its invocations, whether a worker or the triggerer hosts it."""

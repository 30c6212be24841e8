"""What one task instance does with its invocations, in a worker or in the triggerer."""

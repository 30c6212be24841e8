"""What clients search by: query specifications, RoboQL and file patterns."""

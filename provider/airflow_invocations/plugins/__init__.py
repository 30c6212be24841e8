"""What the provider adds to Airflow itself: a page of invocations."""

"""The web pages: of invocations in Airflow, and what all pages share."""

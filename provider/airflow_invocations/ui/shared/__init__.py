"""What the page in Airflow and the local server's page share: templates, styles, scripts and headers."""

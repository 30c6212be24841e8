"""An Apache Airflow provider that invokes actions on the platform behind a connection."""

__version__ = "0.1.0"

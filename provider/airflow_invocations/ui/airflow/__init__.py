"""The page in Airflow's UI that shows what its DAG runs have invoked; only the API server imports it."""

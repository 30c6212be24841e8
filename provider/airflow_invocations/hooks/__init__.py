"""Hooks: a connection of Airflow's, ready to be used."""

from .roboto import RobotoHook

__all__ = ["RobotoHook"]

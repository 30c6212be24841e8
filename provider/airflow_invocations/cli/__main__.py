"""Run the command line as `python -m airflow_invocations.cli`."""

import sys

from .main import main

sys.exit(main())

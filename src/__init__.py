"""SimCLR, clusters of its features, and what uses them."""

import importlib.util

if not importlib.util.find_spec("tyro"):  # a Python without the packages
    raise SystemExit("error: run `source .venv/bin/activate` first; `make run` creates .venv")

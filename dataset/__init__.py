"""The data sets."""

import src  # noqa: F401 - it checks that the packages are installed

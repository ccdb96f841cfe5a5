"""A script that cannot write files above a size, as on a disk that is almost full.

python tests/helpers/full_disk.py BYTES SCRIPT FLAGS
"""

import resource
import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    size = int(sys.argv.pop(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    runpy.run_path(sys.argv[0], run_name="__main__")

"""``skyray export`` as a script, for ``ray job submit``; see jobs/README.md."""

import sys

sys.path[0] += "/../platform"  # the sources, in place of this folder

from skyray.cli import main

main(["export", *sys.argv[1:]])

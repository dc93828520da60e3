"""`python -m crashdump_analysis.triage`."""

import sys

from crashdump_analysis.triage.command import main

sys.exit(main())
